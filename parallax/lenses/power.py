"""Power and energy of the GPUs at hand, by NVML's counters; None wherever there is none."""

import os
from collections.abc import Iterable
from typing import Any

# NVML's counter of joules moves every few tens of milliseconds: less than this it cannot measure.
LEAST_S = 1.0


def read_power() -> float | None:
    """Watts of the first GPU."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return nvml.nvmlDeviceGetPowerUsage(nvml.nvmlDeviceGetHandleByIndex(0)) / 1e3
    except nvml.NVMLError:
        return None


def read_energy(devices: Iterable[Any]) -> float | None:
    """Joules that these JAX devices have used since their driver was loaded, added up.

    What is measured has to last LEAST_S. None where a device is no GPU of this machine, or counts
    no energy.
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
    """NVML numbers all GPUs of a machine, JAX those that CUDA_VISIBLE_DEVICES names."""
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
