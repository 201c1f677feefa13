"""Which assembler ran: by its note in a program, and by the search order."""

import pytest

from parallax.kernels import assembler
from parallax.kernels.assembler import Assembler, first_found, miscompiles_causal, noted_version

HOST = b"\x7fELF\x02\x01\x01\x00"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose assemblers are scripts: installed(place, version) adds one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x --xla_gpu_cuda_data_dir={tmp_path}/flag")
    monkeypatch.setenv("PATH", f"{tmp_path}/path/bin")
    monkeypatch.setattr(assembler, "_SYSTEM", tmp_path / "system")
    monkeypatch.setattr(assembler, "_wheels", lambda: [tmp_path / "wheel"])

    def installed(place, version):
        file = tmp_path / place / "bin" / "ptxas"
        file.parent.mkdir(parents=True)
        release = ".".join(version.split(".")[:2])
        file.write_text(f"#!/bin/sh\necho 'Cuda tools, release {release}, V{version}'\n")
        file.chmod(0o755)

    return installed


class Program:
    """As a compiled one, as far as an assembler is asked for."""

    def __init__(self, data):
        self.data = data

    def runtime_executable(self):
        return self

    def serialize(self):
        return self.data


@pytest.mark.parametrize(
    ("note", "version"),
    [
        (b"Cuda compilation tools, release 13.0, V13.0.88\0Build", "13.0.88"),
        (b"tools, release 13.0, V\x01\x078.88\0Build", "13.0.88"),  # as compressed
        (b"nothing", None),
    ],
)
def test_a_note_names_the_version(note, version):
    assert noted_version(HOST + note) == version
    # What XLA's own kernels were made with comes before the host's code.
    assert noted_version(b"release 13.1, V13.1.1\0" + HOST + note) == version


def test_the_search_order_is_that_of_xla(machine, tmp_path):
    for place, version in (("wheel", "12.9.86"), ("system", "13.0.88"), ("path", "13.1.1")):
        machine(place, version)
        found = first_found()
        assert found is not None
        assert found.version == version
    assert found.source == "PATH"
    machine("flag", "12.8.61")
    assert first_found() == Assembler("12.8.61", "--xla_gpu_cuda_data_dir")


def test_what_ran_is_what_the_note_says_and_where_it_is(machine):
    machine("path", "12.9.86")
    machine("system", "13.0.88")
    noted = HOST + b"release 13.0, V13.0.88\0"
    found = assembler.assembler_of(Program(noted))
    assert found is not None
    assert found.source.endswith("system")
    assert assembler.assembler_of(Program(b"")) == Assembler("12.9.86", "PATH")
    linked = HOST + b"release 13.2, V13.2.7\0"
    assert assembler.assembler_of(Program(linked)) == Assembler("13.2.7", "a library")


def test_a_machine_without_one_says_so(machine):
    assert first_found() is None


@pytest.mark.parametrize(
    ("version", "is_wrong"),
    [("12.6.85", False), ("12.8.61", True), ("12.9.41", True), ("12.9.86", False),
     ("13.0.88", False)],
)  # fmt: skip
def test_the_assemblers_that_break_causal_kernels(version, is_wrong):
    assert miscompiles_causal(version) == is_wrong
