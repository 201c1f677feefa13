"""Compressed weights: bytes of the table, values of the grid, positions of the largest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.compression import check_packed, compress, decompress, parse_format
from parallax.compression.bits import pack, unpack
from parallax.compression.sparsity import mask

NAMES = ["float16", "float16+2:4", "int8", "w8a8", "int8+2:4", "int8/32", "int4", "int4/32",
         "int4/32+2:4", "int8+1:4", "int8+4:8", "float16+5:7"]  # fmt: skip
INPUTS = {"float16+5:7": 56}


def weight(*shape, dtype="float64", seed=0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.slow
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 2), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_what_is_packed_comes_back_and_a_piece_by_itself(width, count, axis, seed):
    shape = [3, 2, 4]
    shape[axis] = 16 * count
    x = np.random.default_rng(seed).integers(0, 2**width, shape)
    packed = pack(jnp.asarray(x), width, axis)
    assert packed.dtype == jnp.uint8
    assert packed.shape[axis] == 2 * count * width
    np.testing.assert_array_equal(unpack(packed, width, axis), x)
    half = jnp.split(packed, 2, axis)[1]
    np.testing.assert_array_equal(unpack(half, width, axis), np.split(x, 2, axis)[1])


@pytest.mark.parametrize("name", NAMES)
def test_stored_bytes_are_the_tables(name):
    form = parse_format(name)
    inputs = INPUTS.get(name, 256)
    packed = compress(weight(inputs, 24), form, (0,))
    assert packed.n_bytes == form.n_bytes(inputs, 24)
    assert decompress(packed, form, 0, "float64").shape == (inputs, 24)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_the_nearest_on_its_grid_or_was_dropped(name):
    form = parse_format(name)
    w = weight(INPUTS.get(name, 256), 24)
    packed = compress(w, form, (0,))
    kept: Any = np.ones(w.shape, bool)
    if form.sparse:
        kept = np.asarray(mask(w, form.kept, form.of, 0))
    found: Any = np.asarray(decompress(packed, form, 0, "float64"))
    assert (found[~kept] == 0).all()
    assert kept.reshape(-1, form.of, 24).sum(1).min() == form.kept
    if packed.scales is None:
        np.testing.assert_array_equal(found[kept], np.float16(w)[kept])
        return
    scales: Any = np.float64(packed.scales)
    step = np.repeat(scales, w.shape[0] // scales.shape[0], axis=0)
    worst = np.abs(found - w)[kept] / step[kept]
    # Half a step; the largest of a channel may be cut by as much again.
    assert worst.max() <= 0.5 + 1e-3
    levels = 2 ** (form.bits - 1)
    assert np.abs(found / step).max() <= levels + 1e-3


def test_the_largest_of_each_run_stay():
    w = jnp.asarray([[1.0], [-4.0], [3.0], [2.0], [0.0], [0.0], [0.0], [-1.0]])
    packed = compress(w, parse_format("float16+2:4"), (0,))
    np.testing.assert_array_equal(packed.values[:, 0], [-4, 3, 0, -1])
    assert int(packed.positions[0, 0]) == 1 | 2 << 2 | 0 << 4 | 3 << 6
    np.testing.assert_array_equal(
        decompress(packed, parse_format("float16+2:4"), 0, "float64")[:, 0],
        [0, -4, 3, 0, 0, 0, 0, -1],
    )


@pytest.mark.parametrize("name", ["int8+2:4", "float16+4:8", "int8+1:4"])
def test_the_packed_product_is_the_masked_dense_one(name):
    form, w, x = parse_format(name), weight(64, 16), weight(5, 64, seed=1)
    packed = compress(w, form, (0,))
    dense = np.where(mask(w, form.kept, form.of, 0), w, 0.0)
    if packed.scales is None:
        dense = np.float64(np.float16(dense))
    else:  # the grid of the masked weights, without packing
        scales = np.float64(packed.scales)
        dense = np.clip(np.round(np.float32(dense) / packed.scales), -128, 127) * scales
    found = x @ decompress(packed, form, 0, "float64")
    np.testing.assert_allclose(found, x @ dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["int8", "int8/16", "int4/16", "int8+2:4", "int4/16+2:4"])
def test_shards_unpack_on_their_own(name):
    """A piece along the packed dim, as a device holds it, gives the piece of the whole."""
    form = parse_format(name)
    packed = compress(weight(4, 32, 6), form, (0, 1))
    whole = decompress(packed, form, 1, "float32")
    for number in range(2):
        piece = type(packed)(
            *(x if x is None or x.shape[1] == 1 else jnp.split(x, 2, 1)[number] for x in packed)
        )
        found = decompress(piece, form, 1, "float32")
        np.testing.assert_array_equal(found, jnp.split(whole, 2, 1)[number])


def test_one_scale_covers_all_inputs_of_an_output_channel():
    packed = compress(weight(4, 32, 6), parse_format("int8"), (0, 1))
    assert packed.scales.shape == (1, 1, 6)
    packed = compress(weight(4, 32, 6), parse_format("int8/16"), (0, 1))
    assert packed.scales.shape == (4, 2, 6)
    packed = compress(weight(4, 32, 6), parse_format("int8"), (1,))  # dim 0: experts
    assert packed.scales.shape == (4, 1, 6)


def test_a_shard_cut_through_a_byte_is_refused():
    form = parse_format("int8+2:4")
    packed = compress(weight(24, 6), form, (0,))
    cut = type(packed)(packed.values[:4], packed.positions[:2], packed.scales)
    with pytest.raises(ValueError, match="begin and end at whole groups"):
        decompress(cut, form, 0, "float32")


def test_damaged_positions_and_scales_are_refused():
    form = parse_format("int8+2:4")
    packed = jax.tree.map(np.array, compress(weight(64, 8), form, (0,)))
    check_packed(packed, form, 0, "layer 3")
    twice = packed._replace(positions=np.zeros_like(packed.positions))
    with pytest.raises(ValueError, match="layer 3: positions .* ascend"):
        check_packed(twice, form, 0, "layer 3")
    scales = packed.scales.copy()
    scales[0, 3] = np.nan
    with pytest.raises(ValueError, match="scales must be finite"):
        check_packed(packed._replace(scales=scales), form, 0, "layer 3")
    outside = parse_format("float16+2:7")
    w = jax.tree.map(np.array, compress(weight(56, 8), outside, (0,)))
    w.positions[:] = 0b11111000  # 0, 7: there is no place 7 of 7
    with pytest.raises(ValueError, match="stay below 7"):
        check_packed(w, outside, 0, "layer 3")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("int7", "unknown format"), ("int8+4:4", "fewer than M"), ("int8+0:4", "fewer than M"),
        ("float16/64", "groups go with"), ("w8a8+2:4", "Use int8 instead"),
        ("int4/0", "at least one"), ("", "unknown format"), ("int8+2:400", "at most 256"),
    ],
)  # fmt: skip
def test_unknown_formats_are_refused(name, why):
    with pytest.raises(ValueError, match=why):
        parse_format(name)


def test_inputs_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 128"):
        compress(weight(96, 8), parse_format("int4"), (0,))
    with pytest.raises(ValueError, match="multiples of 8"):
        compress(weight(12, 8), parse_format("int8+2:4"), (0,))
