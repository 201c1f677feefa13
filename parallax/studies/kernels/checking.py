"""Whether a kernel is right on the device at hand: float64, three calls, memory full of NaN."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.correctness import Verdict, judge
from parallax.kernels.operations import Operation

_CALLS = 3
# Arrays of NaN per output: what a call allocates is likely to be one of them.
_POISONED = 8


def compile_case(operation: Operation, case: Any, implementation: str, arrays: Sequence[Any]):
    """The case's program, compiled for the device at hand."""
    return jax.jit(operation.program(case, implementation)).lower(*arrays).compile()


def check(
    compiled: Callable[..., Sequence[jax.Array]],
    dtype: str,
    arrays: Sequence[Any],
    expected: Sequence[Any],
) -> Verdict:
    """The verdict on three calls of a compiled program.

    Args:
      dtype: of its products.
      arrays: its inputs.
      expected: its outputs in float64.
    """
    calls = []
    for _ in range(_CALLS):
        _poison([np.shape(x) for x in expected])
        calls.append([np.asarray(x) for x in compiled(*arrays)])
    return judge(dtype, calls, expected)


def reference(operation: Operation, case: Any, arrays: Sequence[Any]) -> list[np.ndarray]:
    """The outputs in float64, by XLA on the device at hand: seconds where NumPy takes minutes.

    Tests hold the same program in float64 against NumPy that shares no code.
    """
    with jax.enable_x64(True):
        wide = [
            x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays
        ]
        return [np.asarray(x) for x in jax.jit(operation.program(case, "xla"))(*wide)]


def _poison(shapes: Sequence[tuple[int, ...]]) -> None:
    """Leaves NaN in the memory that a call's outputs are likely to take."""
    arrays = [jnp.full(shape, jnp.nan, jnp.float32) for shape in shapes for _ in range(_POISONED)]
    jax.block_until_ready(arrays)
