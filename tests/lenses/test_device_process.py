"""One process measures in a child; several measure in themselves, on what they started with."""

import os

import jax
import pytest

from parallax.lenses import device_process
from parallax.lenses.device_process import run_on_devices, virtual_devices_for


def where(number, *, on_progress):
    return os.getpid(), number, jax.config.jax_enable_x64


def several(monkeypatch, count=2):
    monkeypatch.setattr(device_process, "process_count", lambda: count)


@pytest.mark.slow
def test_one_process_has_a_child():
    pid, number, _ = run_on_devices(where, 7, environment={})
    assert pid != os.getpid()
    assert number == 7


@pytest.mark.parametrize(("asked", "has"), [({}, True), ({"JAX_ENABLE_X64": "0"}, False)])
def test_several_run_here_in_the_precision_asked_for(monkeypatch, asked, has):
    several(monkeypatch)
    environment = {"JAX_PLATFORMS": "cpu", **asked}
    assert run_on_devices(where, 7, environment=environment) == (os.getpid(), 7, has)
    assert jax.config.jax_enable_x64


def test_virtual_devices_on_other_processes_are_refused(monkeypatch):
    several(monkeypatch)
    with pytest.raises(ValueError, match="the 2 processes have started on cpu devices"):
        run_on_devices(where, 7, environment={"JAX_PLATFORMS": "cuda"})


@pytest.mark.parametrize(
    ("count", "platforms", "set_already", "each"),
    [(1, "cpu", -1, None), (2, "cpu", -1, 8), (3, "cpu", -1, 6), (2, "cpu", 4, None),
     (2, "cuda", -1, None), (2, None, -1, None)],
)  # fmt: skip
def test_processes_on_cpus_share_a_meshs_devices(monkeypatch, count, platforms, set_already, each):
    several(monkeypatch, count)
    given = []
    monkeypatch.setattr(device_process, "virtual_devices", given.append)
    monkeypatch.setattr(type(jax.config), "jax_platforms", platforms)
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", set_already)
    virtual_devices_for(16)
    assert given == ([] if each is None else [each])
