"""The environments of the lenses' child processes, virtual devices, and installed packages."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil

MOST_VIRTUAL = 512
_COUNT_FLAG = "--xla_force_host_platform_device_count"


def cpu_environment(devices: int, *, fast_code: bool = False) -> dict[str, str]:
    """Return the environment of a process with virtual CPU devices and float64.

    Args:
      devices: number of virtual CPU devices.
      fast_code: let XLA optimise, for programs that are timed; compiling takes twice as long.
    """
    flags = re.sub(rf"{_COUNT_FLAG}=\d+", "", os.environ.get("XLA_FLAGS", "")).strip()
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": f"{flags} {_COUNT_FLAG}={devices}".strip(),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if fast_code else "1",
    }


def compile_environment() -> dict[str, str]:
    """Return the environment of a process that compiles for absent GPUs."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "1",  # the partitioner warns of what it replicates
        # JAX's cache cannot read such programs back. `compiled_text` keeps them in the same folder
        # under a hash of their text, which therefore must not hold the caller's line numbers.
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
    }


def missing_compiler() -> str | None:
    """Return one line on what the compile lens lacks and how to get it; None if it can run."""
    if not any(_installed("jax_plugins", f"xla_cuda{version}") for version in (12, 13)):
        lacking = "the CUDA compiler (no GPU needed, 0.5 GB) is"
    elif not (_installed("nvidia", "cuda_nvcc") or _installed("nvidia", "cu13")
              or shutil.which("ptxas")):  # fmt: skip
        lacking = "the plugin is there, but its assembler (ptxas, in nvidia-cuda-nvcc-cu12) is"
    else:
        return None
    return (
        f"compile lens not run: {lacking} not installed. "
        "Get it with: pip install 'parallax-sharding[aot]', or pip install -e '.[aot]' in a clone."
    )


def _installed(package: str, module: str) -> bool:
    if importlib.util.find_spec(package) is None:
        return False
    return importlib.util.find_spec(f"{package}.{module}") is not None


def too_many_devices(count: int) -> str:
    """Return why a process cannot have so many virtual CPU devices; "" if it can."""
    if count <= MOST_VIRTUAL:
        return ""
    return (
        f"{count:,} virtual CPU devices are more than {MOST_VIRTUAL}, the most in a process: each "
        "takes about 10 MB and a thread. Use a smaller mesh."
    )


def virtual_devices(count: int = 16) -> None:
    """Give this process `count` virtual CPU devices; call it before JAX starts.

    Args:
      count: number of devices; of this process, where there are several.

    Raises:
      ValueError: more devices than a process can have.
      RuntimeError: JAX has already started with another number of devices or on another platform.
    """
    import jax

    if why := too_many_devices(count):
        raise ValueError(why)

    # Once JAX has started it refuses the setting; then the number must already be right.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    found = jax.local_devices()
    if found[0].platform != "cpu" or len(found) != count:
        raise RuntimeError(
            f"virtual_devices({count}): too late, JAX has already started with {len(found)} "
            f"{found[0].platform} device(s). Call it first, in a fresh process or kernel."
        )


def installed_versions(*names: str) -> dict[str, str]:
    """Return the versions of those distributions that are installed, by name."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Return the versions of the packages that determine the numbers."""
    names = ("jax", "jaxlib", "flax", "numpy", "jax-cuda12-plugin", "jax-cuda13-plugin",
             "nvidia-cuda-nvcc-cu12", "parallax-sharding")  # fmt: skip
    return {"python": platform.python_version()} | installed_versions(*names)
