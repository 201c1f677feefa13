"""A context in which Mosaic GPU kernels are interpreted on a CPU, for tests."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_PARAMETERS: ContextVar[Any] = ContextVar("interpreter", default=None)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run the kernels traced inside in Mosaic's interpreter, which fails on data races.

    It is slow, supports one device only, and after a failure the process cannot interpret again.
    What the same `jax.jit` traced outside does not change.
    """
    try:
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
    except ImportError:  # public only in some versions of JAX
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
    with setting(_PARAMETERS, InterpretGPUParams(detect_races=True)):
        yield


@contextlib.contextmanager
def setting[T](variable: ContextVar[T], value: T) -> Iterator[T]:
    """Give a variable a value inside."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def interpreter() -> Any:
    """Return the interpreter's parameters; None outside of `interpreted()`."""
    return _PARAMETERS.get()
