"""Mosaic GPU kernels on a CPU, for tests: a context in which they are interpreted."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_PARAMETERS: ContextVar[Any] = ContextVar("interpreter", default=None)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Kernels traced inside run in Mosaic's interpreter, which fails where two threads race.

    Slow, on one device only, and after a failure a process cannot interpret again. What was traced
    outside, by the same `jax.jit`, stays as it is.
    """
    try:
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
    except ImportError:  # public in some versions of JAX only
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
    token = _PARAMETERS.set(InterpretGPUParams(detect_races=True))
    try:
        yield
    finally:
        _PARAMETERS.reset(token)


def interpreter() -> Any:
    """The interpreter's parameters; None outside of `interpreted()`."""
    return _PARAMETERS.get()
