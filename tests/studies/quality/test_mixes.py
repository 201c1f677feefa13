"""Mixes under budgets: bytes by hand, and what no format reaches."""

from typing import Any

import numpy as np
import pytest
from flax import nnx

from parallax.papers import PAPERS
from parallax.placement import layer_footprints
from parallax.results.lens_results import Figure
from parallax.studies.quality import mixes
from parallax.studies.quality.fitting import Looked
from parallax.studies.quality.measuring import MODEL
from parallax.studies.quality.results import Sensitivity

pytestmark = pytest.mark.slow

FULL = PAPERS["compressed_layerwise"].config
ALL = (*mixes.LISTED, *mixes.STRONGER)
WEIGHTS = 4 * 4096**2 + 3 * 4096 * 16_384
WINDOWS, BASELINE = np.zeros((4, 8), np.int32), np.full(4, 1.0)


class _AlwaysWorse:
    """Stands for a trained model that loses 0.1 nats whatever it is stored in."""

    config = MODEL

    def look(self, params, windows):
        return Looked(BASELINE + 0.1, np.zeros(4), np.zeros(0))


WORSE: Any = _AlwaysWorse()


def found_for(formats, damage=lambda layer, part, i: 0.01 * i):
    return [
        Sensitivity(layer, part, form, mixes.part_bytes(MODEL, part, form),
                    Figure(damage(layer, part, i), "nats/byte", "measured"))
        for layer in range(MODEL.num_layers)
        for part in ("attention", "mlp")
        for i, form in enumerate(formats)
    ]  # fmt: skip


def full(formats, budget, damage=lambda layer, part, i: 0.01 * i):
    return mixes.full_size_mix(
        WORSE, nnx.State({}), WINDOWS, BASELINE, found_for(formats, damage), FULL, budget,
        formats, "x",
    )  # fmt: skip


def test_bytes_of_parts_and_norms_are_a_layers():
    for form in mixes.LISTED:
        whole = layer_footprints(FULL, form)[0].weights
        parts = sum(mixes.part_bytes(FULL, part, form) for part in ("attention", "mlp"))
        assert parts + mixes.rest_bytes(FULL) == whole
    assert mixes.rest_bytes(FULL) == 2 * 4096 * 2


def test_no_listed_format_reaches_the_papers_figure():
    """Half of all weights in four bits, two bits of position each, a float32 scale for 128: 3.25
    bits a weight; 49.5 MB allow 1.48."""
    mix = full(mixes.LISTED, 49_500_000)
    assert mix.formats == ()
    assert mix.increase is None
    assert mix.n_bytes == WEIGHTS * 13 // 32 + mixes.rest_bytes(FULL) > 2 * mix.budget_bytes
    assert "none of float16" in mix.note
    assert mix.bits_a_weight == pytest.approx(3.25, abs=1e-3)


def test_stronger_formats_reach_it():
    mix = full(ALL, 49_500_000)
    assert 0 < mix.n_bytes <= mix.budget_bytes
    assert len(mix.formats) == 1
    assert mix.bits_a_weight < 8 * 49.5e6 / WEIGHTS < 1.48
    assert all(":8" in form or ":4" in form for form in mix.formats[0])
    assert mix.increase is not None
    assert mix.increase.value == pytest.approx(100 * np.expm1(0.1))
    # By hand: one weight of eight with eight bits and three of position.
    assert mixes.part_bytes(FULL, "attention", "int8+1:8") == 4096**2 * 4 * 11 // 64 + 4 * 4 * 4096


def test_what_minds_less_gives_way():
    """Attention in layer 0 minds nothing, and takes the strongest format of all."""
    found = found_for(ALL, lambda layer, part, i: 0.0 if (layer, part) == (0, "attention") else i)
    mix = mixes.trained_mix(WORSE, nnx.State({}), WINDOWS, BASELINE, found, 0.5)
    assert mix.n_bytes <= mix.budget_bytes
    assert mix.formats[0][0] in mixes.STRONGER
    assert mix.formats[1][0] in mixes.LISTED
    assert mix.predicted == sum(
        s.nats.value
        for s in found
        if s.format == mix.formats[s.layer][("attention", "mlp").index(s.part)]
    )


def test_noise_below_zero_is_no_gain():
    mix = full(ALL, 600_000_000, lambda layer, part, i: -0.001 * i)
    assert mix.predicted == 0.0


def test_a_share_that_nothing_fits():
    mix = mixes.trained_mix(WORSE, nnx.State({}), WINDOWS, BASELINE, found_for(mixes.LISTED), 0.01)
    assert mix.formats == ()
    assert "no mix fits" in mix.note


def test_sensitivities_are_of_one_part_at_a_time(monkeypatch):
    asked = []
    monkeypatch.setattr(mixes, "store", lambda params, formats: asked.append(formats))
    found = list(mixes.sensitivities(WORSE, nnx.State({}), WINDOWS, BASELINE, ("float16", "int4")))
    assert len(found) == 2 * MODEL.num_layers * 2
    assert asked[0] == [("int4", "float16"), ("float16", "float16")]
    assert asked[-1] == [("float16", "float16"), ("float16", "int4")]
    assert {s.nats.value for s in found if s.format == "float16"} == {0.0}
    assert {round(s.nats.value, 9) for s in found if s.format == "int4"} == {0.1}
