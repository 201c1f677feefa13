"""The same program is compiled once and read back; any other is compiled."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from parallax.lenses import compiled_text
from parallax.lenses.compiled_text import CompiledText, compile_text
from parallax.meshes.cluster import cluster

BYTES = dict(argument=1, output=2, temp=3, alias=4)


class Lowered:
    """Counts how often it is compiled."""

    def __init__(self, text="module"):
        self.text, self.compiled = text, 0
        arguments = dict(num_devices=2, in_shardings=(), out_shardings=())
        self._lowering = SimpleNamespace(compile_args=arguments)

    def as_text(self, *, debug_info):
        assert debug_info  # scopes decide which products are attention's
        return self.text

    def compile(self, options, *, device_assignment):
        assert len(device_assignment) == 2
        self.compiled += 1
        sizes = {f"{name}_size_in_bytes": size for name, size in BYTES.items()}
        return SimpleNamespace(
            as_text=lambda: f"scheduled {self.text} {options}",
            memory_analysis=lambda: SimpleNamespace(**sizes),
        )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    devices = [SimpleNamespace(client=None)] * 16
    monkeypatch.setattr(compiled_text, "topology_devices", lambda *_: devices)
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    yield tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", before)


FIRST: dict[str, Any] = dict(options={"flag": True}, cluster=cluster("h100_2x8"))


def test_what_was_compiled_is_read_back(folder):
    first, again = Lowered(), Lowered()
    expected = CompiledText("scheduled module {'flag': True}", 1, 2, 3, 4)
    assert compile_text(first, **FIRST) == expected
    assert compile_text(again, **FIRST) == expected
    assert (first.compiled, again.compiled) == (1, 0)
    assert [file.suffix for file in folder.iterdir()] == [".gz"]


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"flag": False}},
        {"cluster": cluster("h100_1x8")},
        {"memory_bytes": 1 << 50},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_program_is_compiled(folder, change):
    compile_text(Lowered(), **FIRST)
    other = Lowered()
    compile_text(other, **FIRST | change)
    assert other.compiled == 1


def test_another_text_or_other_flags_of_the_process_too(folder, monkeypatch):
    compile_text(Lowered(), **FIRST)
    other, same = Lowered("another"), Lowered()
    compile_text(other, **FIRST)
    monkeypatch.setenv("XLA_FLAGS", "--xla_other")
    compile_text(same, **FIRST)
    assert (other.compiled, same.compiled) == (1, 1)


def test_a_program_with_callbacks_of_this_process_is_not_kept(folder):
    lowered = Lowered('custom_call @CustomSPMDPartitioning(%0) {backend_config = "140213"}')
    for _ in range(2):
        compile_text(lowered, **FIRST)
    assert lowered.compiled == 2


@pytest.mark.parametrize("nowhere", [None, "gs://bucket/programs"])
def test_without_a_folder_on_disk_nothing_is_kept(folder, nowhere, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_compilation_cache_dir", nowhere)
    lowered = Lowered()
    for _ in range(2):
        compile_text(lowered, **FIRST)
    assert lowered.compiled == 2
    assert not list(tmp_path.iterdir())


def test_a_process_that_hears_no_warnings_keeps_none_for_one_that_does(folder, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    compile_text(Lowered(), **FIRST)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    other = Lowered()
    compile_text(other, **FIRST)
    assert other.compiled == 1
