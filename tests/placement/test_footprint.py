"""Footprints to the byte, formats and budgets, by hand arithmetic."""

import pytest

from parallax.compression import FORMATS
from parallax.meshes.gpus import GPUS
from parallax.papers import PAPERS
from parallax.placement import layer_footprints, parse_budget, verdicts

COMPRESSED = PAPERS["compressed_layerwise"].config
WIDE = PAPERS["cache_layerwise"].config
D, F = 4096, 16_384
NORMS = 2 * D * 2


def weights(config, formats):
    return layer_footprints(config, formats)[0].weights


def test_the_papers_layers_to_the_byte():
    """4 D^2 + 3 D F weights: 537 MB in FP16, which the paper prints for more than weights."""
    assert weights(COMPRESSED, "float16") == 2 * (4 * D * D + 3 * D * F) + NORMS == 536_887_296
    assert weights(WIDE, "float16") == 2 * (4 * 8192**2 + 2 * 8192 * 32_768) + 4 * 8192
    int8 = 4 * D * D + 3 * D * F + 4 * (4 * D + 2 * F + D) + NORMS
    assert weights(COMPRESSED, "int8") == int8
    # Attention dense, the MLP at half its values with two bits each: the paper's own table has
    # two of the three matrices and no positions.
    mixed = layer_footprints(COMPRESSED, [("int8", "int8+2:4")] * 16)[0].weights
    values = 3 * D * F // 2
    assert mixed == 4 * D * D + 4 * 4 * D + values + values // 4 + 4 * (2 * F + D) + NORMS
    assert mixed == pytest.approx(193e6, rel=0.005)
    sparse = weights(COMPRESSED, "int8+2:4")
    assert sparse == pytest.approx(168e6, rel=0.005)
    assert sparse > 3 * GPUS["h100"].l2_bytes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("float16", 2 * 1024 * 6),
        ("int8", 1024 * 6 + 4 * 6),
        ("int4", 1024 * 6 // 2 + 4 * 6 * 8),
        ("float16+2:4", 1024 * 6 + 512 * 6 * 2 // 8),
        ("int8+2:4", 512 * 6 + 512 * 6 * 2 // 8 + 4 * 6),
        ("int4+2:4", 512 * 6 // 2 + 512 * 6 * 2 // 8 + 4 * 6 * 8),
    ],
)
def test_a_matrix_by_hand(name, expected):
    assert FORMATS[name].n_bytes(1024, 6) == expected


def test_formats_get_smaller_and_refuse_what_they_cannot_pack():
    sizes = [f.n_bytes(4096, 4096) for f in FORMATS.values()]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(ValueError, match="multiples of 8"):
        FORMATS["int8+2:4"].n_bytes(1022, 8)
    with pytest.raises(ValueError, match="multiples of 128"):
        FORMATS["int4"].n_bytes(192, 8)


def test_keys_values_activations_and_workspace_are_in_it():
    base, more = (
        layer_footprints(COMPRESSED, "float16", tokens=t, cached_tokens=c, workspace=w)[0]
        for t, c, w in ((0, 0, 0), (16, 100, 7))
    )
    assert more.kv == 2 * 100 * D * 2
    assert more.activations == 16 * 2 * (2 * D + 2 * F)
    assert more.total - base.total == more.kv + more.activations + 7


def test_experts_count_each_and_a_router_stays_as_it_is():
    moe = PAPERS["cross_node_ep"].config
    one = moe.replace(num_experts=0)
    router = 8192 * 16 * 2
    assert weights(moe, "float16") - weights(one, "float16") == 15 * 2 * 2 * 8192 * 32_768 + router


def test_each_layer_may_have_its_own():
    mixed = [("float16", "float16")] * 8 + [("int8", "int4")] * 8
    found = layer_footprints(COMPRESSED, mixed)
    assert len({f.total for f in found}) == 2
    assert found[0].total > found[-1].total
    with pytest.raises(ValueError, match="3 formats for 16 layers"):
        layer_footprints(COMPRESSED, mixed[:3])
    with pytest.raises(ValueError, match="unknown format 'int3'"):
        layer_footprints(COMPRESSED, "int3")


def test_budgets_of_caches_and_of_bytes():
    h100 = GPUS["h100"]
    assert parse_budget("l2", h100).n_bytes == 32_768_000
    both = parse_budget("l2+smem", h100)
    assert both.n_bytes == parse_budget("l2", h100).n_bytes + parse_budget("smem", h100).n_bytes
    assert "62.5" in both.source or "0.625" in both.source
    assert parse_budget("50MB", h100).n_bytes == 50_000_000
    assert parse_budget("1.5Mi", h100).n_bytes == 3 * 2**19
    for bad in ("0", "0MB", "", "l3", "l2+l2", "-5", "1e9"):
        with pytest.raises(ValueError, match="budget"):
            parse_budget(bad, h100)


def test_a_group_says_by_how_much_and_what_would_help():
    budget = parse_budget("l2", GPUS["h100"]).n_bytes
    found = layer_footprints(COMPRESSED, "int8+2:4")
    (one,) = verdicts(COMPRESSED, found, [range(1)], [budget])
    assert not one.fits
    assert one.over == found[0].total - budget
    assert one.would_fit == ""  # no format here brings such a layer into an L2 cache
    assert one.tiles == 6
    (roomy,) = verdicts(COMPRESSED, found, [range(1)], [200_000_000])
    assert roomy.fits
    assert roomy.tiles == 1
    dense = layer_footprints(COMPRESSED, "float16")
    (helped,) = verdicts(COMPRESSED, dense, [range(1)], [300_000_000])
    assert helped.would_fit == "int8"


def test_what_a_model_refuses_has_no_bytes_and_is_recommended_to_nobody():
    """Groups of 128 inputs do not lie inside a head of 64."""
    narrow = COMPRESSED.replace(num_heads=64, num_kv_heads=64, head_dim=64)
    with pytest.raises(ValueError, match="multiples of 128"):
        layer_footprints(narrow, "int4")
    dense = layer_footprints(narrow, "float16")
    budget = layer_footprints(narrow, "int8+2:4")[0].weights - 1
    (found,) = verdicts(narrow, dense[:1], [range(1)], [budget])
    assert found.would_fit == ""
