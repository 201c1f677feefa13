"""Footprints beside the papers' figures by hand, and placements that a reader can follow."""

import pytest

from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.papers.placing import even_groups, placement_facts
from parallax.report.grid import grid_html
from parallax.report.placement_section import placement_grids, spelled
from parallax.workload import Workload

PAPER = PAPERS["compressed_layerwise"]
FACTS = placement_facts(PAPER)
D, F = 4096, 16384


def row(what, formats=("int8", "int8+2:4"), facts=FACTS):
    (found,) = [r for r in facts.footprints if (r.what, r.formats) == (what, formats)]
    return found


def placed(asked, attention="float16", facts=FACTS):
    (found,) = [r for r in facts.placed if (r.asked, r.formats[0]) == (asked, attention)]
    return found


def test_bytes_by_hand():
    dense = ("float16", "float16")
    assert row("weights of one layer", dense).n_bytes == 2 * (4 * D * D + 3 * D * F + 2 * D)
    # One byte a weight and four an output; ten bits for half the weights, and four an output.
    attention = 4 * D * D + 4 * 4 * D
    mlp = 3 * D * F // 2 * 10 // 8 + 4 * (2 * F + D)
    assert row("all attention matrices").n_bytes == attention
    assert row("all MLP matrices").n_bytes == mlp
    assert row("weights of one layer").n_bytes == attention + mlp + 2 * 2 * D
    assert row("keys and values of the batch").n_bytes == 2 * 128 * 10_000 * D * 2


@pytest.mark.parametrize(
    ("what", "formats", "verdict"),
    [
        ("q, k and v", ("float16", "float16"), "consistent"),
        ("weights of all layers", ("float16", "float16"), "consistent"),
        ("all attention matrices", ("int8", "int8+2:4"), "differs"),
        ("norms and what else stays dense", ("int8", "int8+2:4"), "our deviation"),
        ("weights of one layer", ("int8", "int8+2:4"), "differs"),
        ("keys and values of the batch", ("float16", "float16"), ""),
    ],
)
def test_verdicts(what, formats, verdict):
    assert row(what, formats).verdict == verdict


def test_every_disagreement_is_named():
    for found in FACTS.footprints:
        if found.verdict in ("differs", "our deviation"):
            assert found.why, found.what
    assert "1.48 bits a weight" in row("the layer after further steps").why


def test_no_layer_of_a_paper_fits_a_cache():
    for name in ("compressed_layerwise", "cache_layerwise"):
        for found in placement_facts(PAPERS[name]).placed:
            if "hbm" not in found.asked:
                assert not found.largest.fits
                assert not found.greedy
                assert found.why_not
                # So many pieces fit, one fewer would not.
                weights, budget = found.largest.n_bytes, found.budget.n_bytes
                assert weights / found.largest.tiles <= budget < weights / (found.largest.tiles - 1)


def test_greedy_and_optimal_in_memory():
    """Greedy fills the first device with all layers; the optimum gives each device one."""
    found = placed("hbm")
    assert found.greedy == (16, *(0,) * 15)
    assert found.optimal == (1,) * 16
    assert found.greedy_over_optimal == 16
    # Activations are there once, not once a layer.
    layer = row("weights of one layer", ("float16", "float16")).n_bytes
    activations = row("activations of a microbatch", ("float16", "float16")).n_bytes
    assert found.largest.n_bytes == 16 * layer + activations


def test_the_batch_of_cache_layerwise_fits_no_memory():
    found = placed("hbm+kv", facts=placement_facts(PAPERS["cache_layerwise"]))
    assert found.why_not == "one layer is larger than the budget"
    assert (found.largest.tiles, found.bits_to_fit) == (0, 0.0)


def test_what_would_fit():
    small = PAPER.config.replace(name="small", d_model=1024, d_ff=4096, num_heads=8, num_kv_heads=8)
    facts = placement_facts(small, "20MB", cluster("h100_1x4"))
    assert {r.asked for r in facts.placed} == {"20MB"}
    dense, packed = facts.placed
    assert (dense.largest.would_fit, dense.largest.fits) == ("", False)  # four layers a device
    assert packed.largest.layers == range(0, 4)
    assert packed.why_not == "layers are left over"  # each fits, and a device takes only one
    wide = placement_facts(small.replace(num_layers=4), "20MB", cluster("h100_1x4")).placed[0]
    assert wide.largest.would_fit == "float16+2:4"  # 9 bits a weight
    assert 8 < wide.bits_to_fit < 16


def test_fewer_layers_than_devices():
    assert [len(g) for g in even_groups(3, 5)] == [1, 1, 1, 0, 0]
    assert [len(g) for g in even_groups(10, 4)] == [2, 3, 3, 2]


@pytest.mark.parametrize("budget", ["0", "big", "-3MB"])
def test_bad_budgets(budget):
    with pytest.raises(ValueError, match=f"budget '{budget}'"):
        placement_facts(PAPER, budget)


def test_it_is_shown():
    page = "".join(map(grid_html, placement_grids(FACTS)))
    for said in ("193,167,360", "144.1 MB", "greedy 16, 0 x15; optimal 1 x16", "claimed"):
        assert said in page
    footprints, placements = placement_grids(placement_facts(PAPER.config, workload=Workload(1, 8)))
    assert {r[4].text for r in footprints.rows} == {"not printed"}
    assert len(placements.rows) == 10
    assert spelled((5, 5, 1, 0, 0)) == "5 x2, 1, 0 x2"
