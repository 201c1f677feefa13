"""The operations that have kernels: what tests check, compile and benchmark, one by one.

A new kernel adds a line to OPERATIONS; its `cases` module has what `Operation` lists.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from parallax.kernels.ring_attention import cases as ring_attention


class Case(Protocol):
    """Shapes and dtypes of one call; hashable.

    Attributes:
      flops: of the products that count; throughput is counted in these.
      bytes_accessed: the least that must cross device memory.
      uses_wgmma: its machine code must have the tensor cores' instruction.
    """

    @property
    def name(self) -> str: ...
    @property
    def flops(self) -> float: ...
    @property
    def bytes_accessed(self) -> float: ...
    @property
    def uses_wgmma(self) -> bool: ...


class Operation(Protocol):
    """A `cases` module.

    Attributes:
      SMALL: cases for an interpreter.
      SHIPPED: one for each configuration that ships: compiled to machine code.
      TIMED: what the benchmark runs.
      inputs: (case, seed) -> fresh random NumPy arrays, rounded to the case's dtypes.
      program: (case, implementation) -> a function of them that JAX traces, to a tuple of arrays.
      exact: (case, *arrays) -> the same in float64 NumPy, with no code in common.
      contenders: (case) -> what the benchmark times side by side, by name: functions of q, k, v
        and so on (`inputs`), or a few words on why one does not run.
    """

    SMALL: Sequence[Any]
    SHIPPED: Sequence[Any]
    TIMED: Sequence[Any]
    inputs: Callable[[Any, int], tuple[np.ndarray, ...]]
    program: Callable[[Any, str | None], Callable[..., tuple]]
    exact: Callable[..., tuple[np.ndarray, ...]]


OPERATIONS: dict[str, Operation] = {
    "ring_attention": ring_attention,
}
