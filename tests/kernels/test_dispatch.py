"""The one rule that chooses an implementation."""

import warnings

import jax
import pytest

from parallax.kernels import dispatch, validation
from parallax.kernels.assembler import Assembler
from parallax.kernels.dispatch import UnvalidatedKernelWarning, choose, enabling, refusals
from parallax.kernels.interpreting import interpreted
from parallax.kernels.validation import Kind, Run

ABLE = {"mosaic": None, "cudnn": "it is too wide", "xla": None}
GPU = "NVIDIA H100 80GB HBM3"
KIND = Kind(128, "bfloat16")
RUN = Run(
    "attention_step", "mosaic", "a case", *KIND, gpu=GPU, jax=jax.__version__,
    assembler="13.0.88", assembler_source="PATH", date="2026-11-28",
    errors=(2e-3, 0.0, 1e-6), is_right=True, seconds=1e-3, kernel_seconds=9e-4, xla_seconds=3e-3,
)  # fmt: skip


@pytest.fixture
def record(monkeypatch):
    """Puts lines in place of the record, on a GPU that has none of its own."""
    monkeypatch.setattr(dispatch, "device_kind", lambda: GPU)
    monkeypatch.setattr(validation, "first_found", lambda: None)
    monkeypatch.setattr(dispatch, "_WARNED", set())
    validation._assembler_miscompiles.cache_clear()
    yield lambda *runs: monkeypatch.setattr(validation, "recorded", lambda: runs)
    validation._assembler_miscompiles.cache_clear()


def changed(**changes):
    return Run(**{**RUN.__dict__, **changes})


def test_none_takes_the_best_that_can_and_is_enabled(record):
    record()
    assert choose("op", None, ABLE) == "xla"
    with enabling("mosaic"):
        assert choose("op", None, ABLE) == "mosaic"
        assert choose("op", None, ABLE | {"mosaic": "it is too long"}) == "xla"
    assert choose("op", None, ABLE) == "xla"
    assert choose("op", "mosaic", ABLE) == "mosaic"


@pytest.mark.parametrize(
    ("asked", "message"),
    [("cudnn", "cannot do this: it is too wide. "), ("magic", "does not exist here: there are ")],
)
def test_one_that_cannot_is_refused_by_name(asked, message):
    with pytest.raises(NotImplementedError, match=f"op: implementation='{asked}' {message}") as no:
        choose("op", asked, ABLE)
    assert "Use implementation='xla'" in str(no.value)


def test_an_enabled_one_that_cannot_is_recorded():
    with refusals() as found:
        choose("op", None, {"mosaic": "it is too wide", "xla": None})
        assert found == set()
        with enabling("mosaic"):
            choose("op", None, {"mosaic": "it is too wide", "xla": None})
    assert found == {"op: mosaic cannot do this: it is too wide"}


def test_none_takes_a_kernel_where_the_record_validates_it(record):
    record(RUN)
    assert choose("attention_step", None, ABLE, kind=KIND) == "mosaic"
    assert choose("attention_step", None, ABLE | {"mosaic": "no"}, kind=KIND) == "xla"
    assert choose("attention_step", None, ABLE) == "xla"
    assert choose("decode_attention", None, ABLE, kind=KIND) == "xla"
    assert choose("ring_attention", None, ABLE, kind=KIND, kernel="attention_step") == "mosaic"


@pytest.mark.parametrize(
    "kind",
    [
        Kind(256, "bfloat16"),
        Kind(128, "float16"),
        Kind(128, "bfloat16", is_causal=True),
        Kind(128, "bfloat16", cut="turns"),
    ],
)
def test_the_record_says_nothing_of_another_kind(record, kind):
    record(RUN)
    assert choose("attention_step", None, ABLE, kind=kind) == "xla"


@pytest.mark.parametrize(
    "run",
    [
        changed(gpu="NVIDIA H200"),
        changed(jax="0.1.0"),
        changed(jax="99.0.0"),
        changed(is_right=False),
        changed(is_right=None),
        changed(seconds=4e-3),
        changed(seconds=None),
        changed(implementation="another"),
    ],
    ids=["gpu", "older", "newer", "wrong", "unchecked", "slower", "untimed", "implementation"],
)
def test_other_lines_validate_nothing_here(record, run):
    record(run)
    assert choose("attention_step", None, ABLE, kind=KIND) == "xla"


def test_lines_of_one_kind_are_read_together(record):
    record(changed(jax="0.1.0"), changed(jax="99.0.0", seconds=None))
    assert choose("attention_step", None, ABLE, kind=KIND) == "mosaic"
    for other in (changed(is_right=False), changed(case="long", seconds=4e-3, is_right=None)):
        record(RUN, other)
        assert choose("attention_step", None, ABLE, kind=KIND) == "xla"


def test_the_fastest_of_two_is_taken(record):
    able = {"mosaic": None, "another": None, "xla": None}
    record(RUN, changed(implementation="another", seconds=5e-4))
    assert choose("attention_step", None, able, kind=KIND) == "another"


@pytest.mark.parametrize(
    ("assembler", "chosen"),
    [("12.6.20", "mosaic"), ("12.8.61", "xla"), ("12.9.41", "xla"), ("12.9.86", "mosaic")],
)
def test_a_causal_kernel_needs_an_assembler_that_is_sound(record, monkeypatch, assembler, chosen):
    causal = KIND._replace(is_causal=True)
    record(changed(is_causal=True, assembler=assembler))
    assert choose("attention_step", None, ABLE, kind=causal) == chosen
    record(changed(assembler=assembler))
    assert choose("attention_step", None, ABLE, kind=KIND) == "mosaic"
    # The record may be sound, and this machine not.
    record(changed(is_causal=True))
    monkeypatch.setattr(validation, "first_found", lambda: Assembler(assembler, "PATH"))
    validation._assembler_miscompiles.cache_clear()
    assert choose("attention_step", None, ABLE, kind=causal) == chosen


def test_a_kernel_that_is_not_validated_warns_once_an_operation(record):
    record(RUN)
    with pytest.warns(
        UnvalidatedKernelWarning, match="decode_attention: the kernel 'mosaic' .*128"
    ):
        choose("decode_attention", "mosaic", ABLE, kind=KIND)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose("decode_attention", "mosaic", ABLE, kind=KIND)
        choose("attention_step", "mosaic", ABLE, kind=KIND)  # validated
        choose("attention_step", None, ABLE, kind=KIND)
        choose("cache_tiled_mlp", "xla", ABLE)
        with interpreted():
            choose("cache_tiled_mlp", "mosaic", ABLE)
    with enabling("mosaic"), pytest.warns(UnvalidatedKernelWarning, match="cache_tiled_mlp"):
        choose("cache_tiled_mlp", None, ABLE)


def test_what_ships_validates_nothing_that_no_gpu_has_run():
    """The package's own record can be read, and every line of it names what it was made with."""
    for run in validation.recorded():
        assert run.gpu
        assert run.assembler
        assert run.is_right is not None or run.seconds is not None or run.why_not
