"""Decode attention in XLA against the textbook's, in float64; and how the kernel cuts the work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from parallax.kernels.decode_attention import NewToken, decode_attention, merge, mosaic
from parallax.kernels.decode_attention.tiles import REGISTERS_OF_TWO, splits, tile_of
from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import Carry, finish

SCALE = 0.3
SPANS = np.array([[[0, 5], [11, 40]], [[3, 3], [7, 8]], [[0, 0], [0, 0]]], np.int32)
LENGTHS = np.array([17, 40, 0], np.int32)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def arrays(heads=6, kv_heads=2, slots=40, width=8):
    kv = (3, kv_heads, slots, width)
    return draw(3, heads, width), draw(*kv, seed=1), draw(*kv, seed=2)


def textbook(q, k, v, mask):
    """[B, H, V], query by query; 0 where nothing counts."""
    out = np.zeros((*q.shape[:2], v.shape[-1]))
    for b, h in np.ndindex(*q.shape[:2]):
        g = h * k.shape[1] // q.shape[1]
        keys, values = (np.asarray(x[b, g])[mask[b]] for x in (k, v))
        if len(keys):
            p = np.exp(SCALE * keys @ np.asarray(q[b, h]))
            out[b, h] = p @ values / p.sum()
    return out


def outputs(carry):
    return finish(carry, jnp.float64)[0][:, 0]


def masks():
    slots = np.arange(40)
    of_spans = ((slots >= SPANS[:, :, :1]) & (slots < SPANS[:, :, 1:])).any(1)
    return {
        "all": ({}, np.ones((3, 40), bool)),
        "one length": ({"kv_length": 23}, np.broadcast_to(slots < 23, (3, 40))),
        "lengths": ({"kv_length": LENGTHS}, slots < LENGTHS[:, None]),
        "spans": ({"kv_spans": jnp.asarray(SPANS)}, of_spans),
        "mask": ({"kv_mask": jnp.asarray(of_spans)}, of_spans),
    }


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("way", masks())
def test_equals_the_textbook(heads, way):
    said, mask = masks()[way]
    q, k, v = arrays(heads)
    carry = decode_attention(q, k, v, scale=SCALE, **said)
    assert (carry.o.shape, carry.m.shape) == ((3, heads, 1, 8), (3, heads, 1))
    np.testing.assert_allclose(outputs(carry), textbook(q, k, v, mask), atol=1e-13)
    nothing = ~mask.any(1)
    assert bool(jnp.isneginf(carry.m[nothing]).all())
    assert not np.asarray(carry.l[nothing]).any()
    assert not np.asarray(carry.o[nothing]).any()


def test_a_new_token_is_one_more_key():
    q, k, v = arrays()
    new = NewToken(k[:, :, -1], v[:, :, -1], jnp.array([True, False, True]))
    carry = decode_attention(q, k[:, :, :-1], v[:, :, :-1], scale=SCALE, kv_length=9, new=new)
    mask = np.arange(40) < 9
    mask = np.stack([mask | (np.arange(40) == 39) & counts for counts in (True, False, True)])
    np.testing.assert_allclose(outputs(carry), textbook(q, k, v, mask), atol=1e-13)


def test_rows_pick_from_a_larger_cache():
    q, k, v = arrays()
    picked = jnp.array([2, 0, 2])
    carry = decode_attention(q, k, v, scale=SCALE, kv_rows=picked, kv_spans=jnp.asarray(SPANS))
    expected = decode_attention(q, k[picked], v[picked], scale=SCALE, kv_spans=jnp.asarray(SPANS))
    for a, b in zip(carry, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_sink_is_a_score_without_a_value():
    q, k, v = arrays()
    sinks = np.array([-np.inf, 0, 1, 2, 3, 20])
    attend = functools.partial(decode_attention, q, k, v, scale=SCALE, kv_length=jnp.array(LENGTHS))
    carry = attend(sinks=jnp.asarray(sinks))
    _, m, l = (np.asarray(x) for x in attend())
    p = l[..., 0] * np.exp(m[..., 0])  # of all slots, beside the sink's
    share = p / np.where(p == 0, 1, p + np.exp(sinks))
    expected = textbook(q, k, v, masks()["lengths"][1]) * share[..., None]
    np.testing.assert_allclose(outputs(carry), expected, atol=1e-13)


def test_a_window_cuts_and_prices_the_kernel(monkeypatch):
    """Of 8192 slots, a window of 128 is one tile, and no more is declared."""
    calls = []

    def call(name, body, operands, results, *, grid, flops, bytes_accessed, **_):
        del name, body, operands
        calls.append((grid["splits"], flops, bytes_accessed))
        return tuple(jnp.zeros(x.shape, x.dtype) for x in results)

    monkeypatch.setattr(mosaic.hopper, "call", call)
    arguments = case(width=64, slots=8192)
    with interpreted():
        for window in (None, 128, 9000):
            decode_attention(**arguments, window=window, implementation="mosaic")
    whole, windowed, longer = calls
    assert whole == longer
    assert whole[0] > windowed[0] == 1
    assert whole[1] == 64 * windowed[1]
    cache = 2 * 3 * 2 * 128 * 64 * 2  # keys and values of 3 sequences and 2 heads, 2 bytes each
    assert cache < windowed[2] < 1.1 * cache


def test_parts_merge_into_the_whole():
    q, k, v = arrays()
    attend = functools.partial(decode_attention, q, scale=SCALE)
    whole = attend(k, v)
    parts = [attend(k[:, :, a:b], v[:, :, a:b]) for a, b in ((0, 8), (8, 9), (9, 40))]
    nothing = attend(k, v, kv_length=0)
    merged = merge(nothing, *parts, nothing)
    for a, b in zip(merged, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    still = merge(nothing, nothing)
    assert bool(jnp.isneginf(still.m).all())
    assert not np.asarray(still.o).any()


def test_slots_over_16_devices_are_the_whole_cache():
    q, k, v = arrays(slots=64)
    mesh = jax.make_mesh((16,), ("seq",), axis_types=(AxisType.Auto,))
    length = jnp.array([64, 1, 37], jnp.int32)

    def local(q, k, v):
        mine = jnp.clip(length - 4 * lax.axis_index("seq"), 0, 4)
        part = decode_attention(q, k, v, scale=SCALE, kv_length=mine)
        every = [lax.all_gather(x, "seq", to="invarying") for x in part]
        return merge(*(Carry(*(x[i] for x in every)) for i in range(16)))

    split = PartitionSpec(None, None, "seq")
    run = jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), split, split),
                        out_specs=PartitionSpec())  # fmt: skip
    found = jax.jit(run)(q, k, v)
    whole = decode_attention(q, k, v, scale=SCALE, kv_length=length)
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def case(dtype="bfloat16", width=128, slots=64, **changes):
    q, k, v = (x.astype(dtype) for x in arrays(slots=slots, width=width))
    return {"q": q, "k": k, "v": v, "scale": SCALE} | changes


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (case("float32"), "inputs are float32"),
        (case(width=96), "head_dim is 96"),
        (case(slots=60), "60 slots, and it takes a multiple of 8"),
        (case(kv_mask=jnp.ones((3, 64), bool)), "spans of slots, not a mask"),
        (case(partial_over="x"), "sum scores over a mesh axis"),
        (case(scale=-1.0), "takes a positive one"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(arguments, reason):
    with interpreted(), pytest.raises(NotImplementedError, match=reason):
        decode_attention(**arguments, implementation="mosaic")


def test_refusals_name_what_can():
    with pytest.raises(NotImplementedError, match="partial softmaxes are float32.*'xla'"):
        decode_attention(**case(), implementation="cudnn")
    with pytest.raises(NotImplementedError, match="it is for Hopper GPUs"):
        decode_attention(**case(), implementation="mosaic")
    with pytest.raises(ValueError, match="window=0 slots"):
        decode_attention(**case(), window=0)
    with pytest.raises(ValueError, match="Pass one of them"):
        decode_attention(**case(), kv_length=3, kv_mask=jnp.ones((3, 64), bool))


CUTS = [(d, r) for d in (64, 128, 256, 512) for r in (1, 6, 8, 9, 16, 20, 32, 64, 100)]


@pytest.mark.parametrize(("head_dim", "heads_per_kv"), CUTS)
def test_cuts_hold_the_queries_and_enough_on_their_way(head_dim, heads_per_kv):
    tile = tile_of(head_dim, heads_per_kv)
    assert tile.queries % 8 == 0
    assert 0 <= tile.groups * tile.queries - heads_per_kv < 8 * tile.groups
    assert tile.chunk_bytes == 16 * 1024
    # 4.3 TB/s x 1 us over 132 multiprocessors are 33 KB.
    assert tile.blocks * tile.stages * tile.chunk_bytes >= 5 * 33_000
    if tile.blocks == 2:
        assert 2 * 256 * REGISTERS_OF_TWO <= 65_536


def test_splits_fill_the_gpu_and_no_more():
    tile = tile_of(128, 8)
    assert splits(16 * 8, 32_768, tile) == 2  # 256 of 264 blocks of threads
    assert splits(8, 32_768, tile) == 32  # one sequence, 16 tiles each
    assert splits(1, 32_768, tile) == 256  # 2 tiles each
    assert splits(16 * 16, 64, tile) == 1
    assert splits(1000, 10_000, tile_of(512, 1)) == 5  # 19 waves, nearly full
