"""One layer per device: speed and energy by hand, and three shares that differ."""

import pytest

from parallax.analytic.fastest import fastest
from parallax.cost import joules, rates_of
from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.papers.scaling import scale_rows
from parallax.programs.steps import make_step
from parallax.report.grid import grid_html
from parallax.report.scale_section import scale_grids
from parallax.strategies import build
from parallax.workload import Workload

PAPER = PAPERS["compressed_layerwise"]
ROWS = scale_rows(PAPER, (8, 16))


def row(layers=16, strategy="layerwise", phase="decode", unpacking=""):
    (found,) = [
        r for r in ROWS
        if (r.layers, r.strategy, r.phase, r.unpacking) == (layers, strategy, phase, unpacking)
    ]  # fmt: skip
    return found


def step_of(name, batch):
    return make_step(PAPER.config, build(name), Workload(batch, 10_000), "decode")


def value(figure):
    assert figure is not None
    return figure.value


def test_three_shares_by_hand():
    found, gpu = row(), cluster("h100_2x8").gpu
    layer = 2 * (4 * 4096**2 + 3 * 4096 * 16384)
    assert found.l2_use.value == pytest.approx(layer / gpu.l2_bytes)
    cache = 128 * 10_001 * 2 * 4096 * 2
    assert value(found.hbm_use) > cache / (0.92 * gpu.memory_bytes)
    assert value(found.hit_rate) == 0.0  # a layer ten times the cache
    assert {c.printed for c in found.claims.values()} == {"15,360", "1.48", "99", "2", "98.5"}


def test_the_baseline_has_the_same_columns():
    found = row(strategy="tensor_pipeline")
    # Eight layers, an eighth of each.
    assert found.l2_use.value == pytest.approx(row().l2_use.value)
    assert None not in (found.hit_rate, found.hbm_use, found.j_per_token)
    assert {c.printed for c in found.claims.values()} == {"12,800", "1.14", "23", "15"}


def test_energy_is_the_cost_model_s():
    where = cluster("h100_2x8")
    best = fastest(step_of("layerwise", 128), where)
    each = 16 * joules(best.estimate.cost, rates_of("h100")) / 128
    assert value(row().j_per_token) == pytest.approx(each)
    assert value(row().tokens_per_j) == pytest.approx(1 / each)


def test_throughput_does_not_grow_with_one_layer_a_device():
    """The paper says 7,680 at 8 layers and twice that at 16: equal stages give equal speed."""
    for phase in ("prefill", "decode"):
        few, many = (value(row(n, phase=phase).tokens_per_s) for n in (8, 16))
        assert few > many
    assert row(8).claims["TPS"].printed == "7,680"


def test_a_batch_that_does_not_fit_is_lowered_and_says_so():
    (found,) = [r for r in scale_rows(PAPERS["cache_layerwise"], (8,))
                if (r.strategy, r.phase, r.unpacking) == ("layerwise", "decode", "")]  # fmt: skip
    assert (found.asked_batch, found.batch) == (1024, 128)
    assert "a device needs 338 GB, 78.1 GB are usable" in found.why_not


def test_nothing_fits():
    with pytest.raises(ValueError, match=r"a device needs .* GB, 78.1 GB are usable"):
        fastest(step_of("layerwise", 8192), cluster("h100_2x8"))


def test_it_is_shown():
    decode, prefill = scale_grids(ROWS)
    assert "decoding step" in decode.title
    assert "whole batch" in prefill.title
    assert len(decode.rows) == len(prefill.rows) == 8
    page = "".join(map(grid_html, scale_grids(ROWS)))
    for said in ("kernel, assumed", "98.5 %", "1.48", "7,680"):
        assert said in page
