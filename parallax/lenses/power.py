"""The power and energy of the local GPUs, from NVML's counters; None without a GPU or NVML."""

import os
from collections.abc import Iterable
from typing import Any

# NVML updates its energy counter every few tens of milliseconds; shorter runs cannot be measured.
LEAST_S = 1.0


def read_power() -> float | None:
    """Read the power of the first GPU in watts; None where it cannot be read."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return nvml.nvmlDeviceGetPowerUsage(nvml.nvmlDeviceGetHandleByIndex(0)) / 1e3
    except nvml.NVMLError:
        return None


def read_energy(devices: Iterable[Any]) -> float | None:
    """Read the joules that these JAX devices have used together since their driver was loaded.

    An interval between two readings has to last LEAST_S. None where a device is not a GPU of this
    machine, or counts no energy.
    """
    devices = list(devices)
    if any(d.platform not in ("gpu", "cuda") for d in devices):
        return None
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        used = (nvml.nvmlDeviceGetTotalEnergyConsumption(_handle(nvml, d)) for d in devices)
        return sum(used) / 1e3
    except (nvml.NVMLError, IndexError, ValueError):
        return None


def _handle(nvml: Any, device: Any) -> Any:
    """Return a device's NVML handle: JAX numbers only the GPUs in CUDA_VISIBLE_DEVICES."""
    index, visible = device.local_hardware_id, os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    name = visible.split(",")[index].strip()
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


def _nvml() -> Any:
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
