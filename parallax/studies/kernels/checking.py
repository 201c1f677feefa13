"""Checks of a kernel on the local device: against float64, three calls, memory full of NaN."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.errors import Verdict, judge
from parallax.kernels.operations import Operation

_CALLS = 3
# Arrays of NaN per output: a call's allocations are likely to reuse one of them.
_POISONED = 8


def compile_case(operation: Operation, case: Any, implementation: str, arrays: Sequence[Any]):
    """Compile a case's program for the local device."""
    return jax.jit(operation.program(case, implementation)).lower(*arrays).compile()


def check(
    compiled: Callable[..., Sequence[jax.Array]],
    dtype: str,
    arrays: Sequence[Any],
    expected: Sequence[Any],
) -> Verdict:
    """Judge three calls of a compiled program.

    Args:
      dtype: dtype of its products.
      arrays: its inputs.
      expected: its outputs in float64.
    """
    calls = []
    for _ in range(_CALLS):
        _poison([np.shape(x) for x in expected])
        calls.append([np.asarray(x) for x in compiled(*arrays)])
    return judge(dtype, calls, expected)


def reference(operation: Operation, case: Any, arrays: Sequence[Any]) -> list[np.ndarray]:
    """Compute the outputs in float64 by XLA on the local device, faster than NumPy by far.

    Tests compare the same float64 program with NumPy code that shares nothing with it.
    """
    with jax.enable_x64(True):
        wide = [
            x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays
        ]
        return [np.asarray(x) for x in jax.jit(operation.program(case, "xla"))(*wide)]


def _poison(shapes: Sequence[tuple[int, ...]]) -> None:
    """Leave NaN in the memory that a call's outputs are likely to reuse."""
    arrays = [jnp.full(shape, jnp.nan, jnp.float32) for shape in shapes for _ in range(_POISONED)]
    jax.block_until_ready(arrays)
