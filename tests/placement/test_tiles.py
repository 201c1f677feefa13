"""Weight tiles under a budget, and what serving microbatches tile by tile saves, by hand."""

import pytest

from parallax.papers import paper
from parallax.placement import most_tokens, tile_traffic, tiles_under

WIDE = paper("cache_layerwise").config
GATED = paper("compressed_layerwise").config
MB = 10**6


def test_slabs_of_the_papers_layers():
    # A head of the first takes 25.2 MB of queries, keys and values; 1/33 of its MLP fits, 1/64 is
    # the next that divides.
    assert tiles_under(WIDE, 32_768_000) == (16, 64)
    assert tiles_under(GATED, 32_768_000) == (4, 16)
    assert tiles_under(GATED, 32_768_000, formats=("int8", "int8+2:4")) == (2, 4)
    # Devices that hold a share of heads and width need as many fewer.
    assert tiles_under(WIDE, 32_768_000, heads=8, width=8) == (2, 8)
    assert tiles_under(WIDE, 10**12) == (1, 1)


def test_a_slab_fits_and_the_next_larger_does_not():
    slab = 3 * 8192 * 512 * 2
    assert tiles_under(WIDE, slab).attention == 16
    with pytest.raises(ValueError, match=f"one key/value head's attention takes {slab} bytes"):
        tiles_under(WIDE, slab - 1)


def test_what_cannot_be_cut_is_said():
    with pytest.raises(ValueError, match="has experts"):
        tiles_under(paper("cross_node_ep").config, 32 * MB)
    thin = GATED.replace(num_heads=4096, num_kv_heads=4096, head_dim=1, positions="none")
    with pytest.raises(ValueError, match="one column of the MLP takes 24576 bytes"):
        tiles_under(thin, 22_000, formats=("int8", "float16"))


def test_traffic_by_hand():
    layer = (4 * 8192**2 + 2 * 8192 * 32768) * 2
    found = tile_traffic(WIDE, tiles_under(WIDE, 32_768_000), tokens=16, microbatches=8)
    assert (found.weights, found.once_each, found.once_a_round) == (layer, 8 * layer, 2 * layer)
    assert found.activations == 80 * 8 * 16 * 8192 * (2 + 4 + 4)
    assert found.held == 8 * 16 * 8192 * (2 + 4)
    assert found.saved == 6 * layer - found.activations
    kernel = tile_traffic(WIDE, tiles_under(WIDE, 32_768_000), 16, 8, copies=0)
    assert kernel.once_a_round == layer


@pytest.mark.parametrize("microbatches", [3, 8, 64])
def test_long_microbatches_are_a_loss(microbatches):
    tiles = tiles_under(WIDE, 32_768_000)
    limit = int(most_tokens(WIDE, tiles, microbatches))
    assert limit == int((microbatches - 2) / microbatches * 1610612736 / (80 * 8192 * 10))
    assert tile_traffic(WIDE, tiles, limit, microbatches).saved >= 0
    assert tile_traffic(WIDE, tiles, limit + 1, microbatches).saved < 0


def test_few_microbatches_save_nothing():
    tiles = tiles_under(WIDE, 32_768_000)
    assert most_tokens(WIDE, tiles, 1) == most_tokens(WIDE, tiles, 2) == 0
    assert most_tokens(WIDE, tiles, 2, copies=0) > 0


def test_a_split_or_a_format_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="heads=3 devices do not divide the model's 16"):
        tiles_under(WIDE, 10**9, heads=3)
    with pytest.raises(ValueError, match="width=5 devices"):
        tiles_under(WIDE, 10**9, width=5)
    with pytest.raises(ValueError, match="stores inputs in multiples of 84"):
        tiles_under(WIDE, 10**9, formats=("float16", "float16+2:21"))
