"""`virtual_devices` in a process of its own, and what the compile lens reports as missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from parallax.lenses import environment

ROOT = Path(__file__).resolve().parents[2]


def python(code):
    """Runs code in a process in which JAX has not started."""
    clean = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=False
    )


def test_virtual_devices_before_jax_starts():
    run = python("import parallax as px, jax; px.virtual_devices(5); print(jax.device_count())")
    assert run.stdout.strip() == "5", run.stderr


def test_virtual_devices_too_late_is_one_clear_line():
    run = python("import parallax as px, jax; jax.devices(); px.virtual_devices(16)")
    assert run.stderr.strip().splitlines()[-1] == (
        "RuntimeError: virtual_devices(16): too late, JAX has already started with 1 cpu "
        "device(s). Call it first, in a fresh process or kernel."
    )


def test_more_virtual_devices_than_a_process_can_have():
    with pytest.raises(ValueError, match="4,096 virtual CPU devices are more than 512"):
        environment.virtual_devices(4096)


def test_virtual_devices_again_with_what_there_is():
    run = python("import parallax as px; px.virtual_devices(4); px.virtual_devices(4); print('ok')")
    assert run.stdout.strip() == "ok", run.stderr


def test_a_missing_compiler_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(environment, "_installed", lambda package, module: False)
    message = environment.missing_compiler() or ""
    assert "CUDA compiler" in message
    assert "pip install -e '.[aot]'" in message


def test_a_plugin_without_its_assembler_is_named(monkeypatch):
    monkeypatch.setattr(environment, "_installed", lambda package, module: package != "nvidia")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert "ptxas" in (environment.missing_compiler() or "")
    monkeypatch.setattr(environment.shutil, "which", lambda name: "/usr/bin/ptxas")
    assert environment.missing_compiler() is None


def test_the_device_count_replaces_an_earlier_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_force_host_platform_device_count=3")
    flags = environment.cpu_environment(7)["XLA_FLAGS"]
    assert flags == "--xla_dump_to=x --xla_force_host_platform_device_count=7"


def test_importing_the_environment_changes_nothing(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    environment.cpu_environment(2)
    with pytest.raises(KeyError):
        _ = environment.os.environ["XLA_FLAGS"]
