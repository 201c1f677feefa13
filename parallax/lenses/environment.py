"""Environments of the lenses' child processes, px.virtual_devices for one's own; versions here."""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil

_COUNT_FLAG = "--xla_force_host_platform_device_count"


def cpu_environment(devices: int, *, fast_code: bool = False) -> dict[str, str]:
    """Variables of a process with so many virtual CPU devices and float64.

    Args:
      devices: how many.
      fast_code: let XLA optimise: twice the time to compile, for programs that are timed. Numbers
        that are only compared need none of it.
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
    """Variables of a process that compiles for GPUs that are not there."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # JAX's cache cannot read such programs back; `compiled_text` keeps them in its folder, by
        # their text, which then must not hold the lines of whoever asked.
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
    }


def missing_compiler() -> str | None:
    """One line on what the compile lens lacks and how to get it; None if it can run."""
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


def virtual_devices(count: int = 16) -> None:
    """Gives this process `count` virtual CPU devices. Call it before JAX starts.

    Args:
      count: devices.

    Raises:
      RuntimeError: JAX has already started with another number of devices or on another platform.
    """
    import jax

    # JAX refuses the number once it has started; then it must already be right.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    found = jax.devices()
    if found[0].platform != "cpu" or len(found) != count:
        raise RuntimeError(
            f"virtual_devices({count}): too late, JAX has already started with {len(found)} "
            f"{found[0].platform} device(s). Call it first, in a fresh process or kernel."
        )


def installed_versions(*names: str) -> dict[str, str]:
    """Of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
