"""Energy counters: a GPU's own, by whatever number JAX gives it; none where there is none."""

import sys
from types import SimpleNamespace

import pytest

from parallax.lenses.power import read_energy, read_power
from parallax.results.lens_results import Figure, Measurement
from parallax.workload import Workload


def gpu(index):
    return SimpleNamespace(platform="gpu", local_hardware_id=index)


class Nvml:
    """Four GPUs that have used 1, 2, 3 and 4 kJ."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index > 3:
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return 1_000_000 * (handle + 1)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 700_000


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_joules_of_the_devices_that_ran(nvml):
    assert read_energy([gpu(0), gpu(3)]) == 5000
    nvml.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert read_energy([gpu(0)]) == 3000
    nvml.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,GPU-a")
    assert read_energy([gpu(0)]) == 2000
    assert read_power() == 700


def test_nothing_where_there_is_no_counter(nvml):
    assert read_energy([gpu(7)]) is None
    assert read_energy([SimpleNamespace(platform="cpu", local_hardware_id=0)]) is None
    nvml.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert read_energy([gpu(1)]) is None  # JAX would not have it
    nvml.setitem(sys.modules, "pynvml", None)
    assert read_energy([gpu(0)]) is None
    assert read_power() is None


def test_energy_a_token():
    step = Figure(1.0, "s", "measured")
    found = Measurement("h", 2, "m", Workload(4, 10), step, 3, Figure(80.0, "J", "measured"))
    assert found.energy_per_token_j is not None
    assert found.energy_per_token_j.value == 2.0
    assert Measurement("h", 2, "m", Workload(4, 10), step, 3).energy_per_token_j is None
