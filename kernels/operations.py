"""The operations that have kernels, which tests check, compile and benchmark one by one.

A new kernel adds a line to OPERATIONS (its `cases`) and one to BASELINES.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from parallax.kernels.cache_tiled_mlp import cases as cache_tiled_mlp
from parallax.kernels.decode_attention import baselines as decode_attention_baselines
from parallax.kernels.decode_attention import cases as decode_attention
from parallax.kernels.errors import relative_error
from parallax.kernels.packed_matmul import cases as packed_matmul
from parallax.kernels.ring_attention import (
    backward_baselines as ring_attention_backward_baselines,
)
from parallax.kernels.ring_attention import backward_cases as ring_attention_backward
from parallax.kernels.ring_attention import baselines as ring_attention_baselines
from parallax.kernels.ring_attention import cases as ring_attention
from parallax.kernels.validation import Kind


class Case(Protocol):
    """The shapes and dtypes of one call; hashable.

    Attributes:
      flops: FLOPs of the products that count; throughput is measured in these.
      bytes_accessed: the least bytes that must cross device memory.
      dtype: the dtype of its products, one of `kernels.errors.BOUNDS`.
      kind: what `dispatch.choose` is handed for it, and what its runs are recorded as.
    """

    @property
    def name(self) -> str: ...
    @property
    def flops(self) -> float: ...
    @property
    def bytes_accessed(self) -> float: ...
    @property
    def dtype(self) -> str: ...
    @property
    def kind(self) -> Kind: ...


class Operation(Protocol):
    """The protocol of a `cases` module.

    Attributes:
      ABOUT: what the kernel does and how, a few sentences for docs/generated/kernels.md.
      SMALL: cases for the interpreter.
      SHIPPED: a case for each configuration that ships, compiled to machine code.
      TIMED: cases that the benchmark runs.
      inputs: (case, seed) -> fresh random NumPy arrays, rounded to the case's dtypes.
      program: (case, implementation) -> a function that JAX traces, from these to a tuple of
        arrays.
      exact: (case, *arrays) -> the same results in float64 NumPy, with no code in common.
    """

    @property
    def ABOUT(self) -> str: ...  # noqa: N802
    @property
    def SMALL(self) -> Sequence[Any]: ...  # noqa: N802
    @property
    def SHIPPED(self) -> Sequence[Any]: ...  # noqa: N802
    @property
    def TIMED(self) -> Sequence[Any]: ...  # noqa: N802

    inputs: Callable[[Any, int], tuple[np.ndarray, ...]]
    program: Callable[[Any, str | None], Callable[..., tuple]]
    exact: Callable[..., tuple[np.ndarray, ...]]


class Baselines(Protocol):
    """The protocol of a `baselines` module, or a value: implementations timed side by side.

    Attributes:
      draw: (case, seed) -> NumPy arrays, the inputs of all baselines.
      baselines: (case) -> by name, a function of these arrays, or why it does not run.
      error: (case, out, *arrays) -> relative error of the output, or of a part, against float64.
    """

    draw: Callable[[Any, int], tuple[np.ndarray, ...]]
    baselines: Callable[[Any], dict[str, Callable | str]]
    error: Callable[..., float]


class KernelAndXla:
    """The baselines of an operation on tokens [..., T, K]: its kernel, and XLA.

    The error is that of a few tokens: all of them would take minutes on a CPU.
    """

    def __init__(self, cases: Any):
        self.cases, self.draw = cases, cases.inputs

    def baselines(self, case: Any) -> dict[str, Callable | str]:
        runs = {name: self.cases.program(case, name) for name in ("mosaic", "xla")}
        return {name: lambda *arrays, run=run: run(*arrays)[0] for name, run in runs.items()}

    def error(self, case: Any, out, x, *arrays) -> float:
        rows = np.unique(np.linspace(0, case.tokens - 1, 4).astype(int))
        few, some = case._replace(tokens=len(rows)), np.asarray(x)[..., rows, :]
        (expected,) = self.cases.exact(few, some, *map(np.asarray, arrays))
        return relative_error(np.asarray(out)[..., rows, :], expected)


OPERATIONS: dict[str, Operation] = {
    "ring_attention": ring_attention,
    "ring_attention_backward": ring_attention_backward,
    "decode_attention": decode_attention,
    "cache_tiled_mlp": cache_tiled_mlp,
    "packed_matmul": packed_matmul,
}
BASELINES: dict[str, Baselines] = {
    "ring_attention": ring_attention_baselines,
    "ring_attention_backward": ring_attention_backward_baselines,
    "decode_attention": decode_attention_baselines,
    "cache_tiled_mlp": KernelAndXla(cache_tiled_mlp),
    "packed_matmul": KernelAndXla(packed_matmul),
}
