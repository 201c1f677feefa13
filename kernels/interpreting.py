"""Mosaic GPU kernels on a CPU, for tests: the interpreter's parameters."""

from typing import Any


def interpreter() -> Any:
    """Parameters of Mosaic's interpreter that fail where two threads race.

    They are public in some versions of JAX only. After a failure a process cannot interpret again.
    """
    try:
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
    except ImportError:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
    return InterpretGPUParams(detect_races=True)
