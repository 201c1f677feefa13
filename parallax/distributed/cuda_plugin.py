"""JAX's CUDA plugin on a machine without a driver, where it would print a traceback at start."""

import os
from pathlib import Path

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def quiet_without_driver() -> None:
    """Keep JAX's CUDA plugin from printing what it lacks to run programs; call before JAX starts.

    The plugin compiles without a driver (extra `aot`), and JAX then runs on the CPU. With a driver
    nothing is kept back.
    """
    if not NVIDIA_DRIVER.exists():
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
