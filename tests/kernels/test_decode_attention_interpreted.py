"""The decode kernel interpreted: all of its partial softmax, empty parts, rows, a new token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels import dispatch
from parallax.kernels.decode_attention import NewToken, decode_attention, mosaic
from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import Carry, finish
from parallax.parallel.attention_part import KvLayout
from parallax.parallel.cached_attention import CachedLayer, cached_attention, picks_rows
from parallax.parallel.scoring import Scoring

SCALE = 0.1


def arrays(batch, heads, kv_heads, slots, width=64):
    random = np.random.default_rng(0)
    shapes = (batch, heads, width), (batch, kv_heads, slots, width), (batch, kv_heads, slots, width)
    return tuple(jnp.asarray(random.normal(size=s), jnp.bfloat16) for s in shapes)


def both(q, k, v, **arguments):
    def run(implementation):
        return jax.jit(
            lambda q, k, v: decode_attention(
                q, k, v, scale=SCALE, implementation=implementation, **arguments
            )
        )(q, k, v)

    with interpreted():
        ours = run("mosaic")
    return ours, run("xla")


def assert_close(ours, theirs):
    for a, b, limit in zip(ours, theirs, (4e-3, 1e-5, 2e-5), strict=True):
        finite = np.isfinite(b)
        np.testing.assert_array_equal(np.isfinite(a), finite)
        assert np.linalg.norm((a - b)[finite]) <= limit * np.linalg.norm(b[finite])


def test_sums_are_those_of_xla_and_nothing_is_empty():
    """Sequences of which one, some and no slots count."""
    q, k, v = arrays(3, 4, 2, 200)
    ours, theirs = both(q, k, v, kv_length=jnp.array([1, 137, 0], jnp.int32))
    assert_close(ours, theirs)
    assert bool(jnp.isneginf(ours.m[2]).all())
    assert not np.asarray(ours.l[2]).any()
    assert not np.asarray(ours.o[2]).any()


def test_rows_of_a_larger_cache_and_a_new_token():
    q, k, v = arrays(3, 4, 2, 136)
    new = NewToken(k[:2, :, 0], v[:2, :, 1], jnp.array([True, False]))
    arguments = {"kv_rows": jnp.array([2, 1], jnp.int32), "new": new, "kv_length": 100}
    assert_close(*both(q[:2], k, v, **arguments))


@pytest.mark.parametrize("splits", [1, 3, 7])
def test_more_splits_than_tiles_are_the_same(splits):
    q, k, v = arrays(1, 8, 1, 392)
    spans = jnp.array([[[0, 90], [131, 391]]], jnp.int32)
    with interpreted():
        found = jax.jit(
            lambda q, k, v: Carry(*mosaic.attend(q, k, v, spans, scale=SCALE, splits=splits))
        )(q, k, v)  # fmt: skip
    whole = decode_attention(q, k, v, scale=SCALE, kv_spans=spans)
    out, expected = (finish(c, jnp.float32)[0] for c in (found, whole))
    assert float(jnp.linalg.norm(out - expected) / jnp.linalg.norm(expected)) < 4e-3


@pytest.mark.parametrize(("window", "has_sinks"), [(None, False), (40, True)])
def test_a_decoding_step_takes_it_where_it_is_enabled(window, has_sinks):
    """Two of three sequences of a cache, and a new token: what a microbatch's layer asks for."""
    q, k, v = arrays(3, 4, 2, 136)
    first = 0 if window is None else 91
    spans = jnp.array([[[first, 130], [132, 133]], [[0, 40], [132, 132]]], jnp.int32)
    rows, keeps, layout = jnp.array([1, 2], jnp.int32), jnp.asarray(True), KvLayout()
    rest: dict = {"scoring": Scoring(is_causal=True, window=window)}
    if has_sinks:
        rest["sinks"] = jnp.array([-9.0, 0.0, 1.0, 9.0], jnp.bfloat16)
    new = q[:2, None], k[:2, None, :, 0], v[:2, None, :, 0]

    def attend(q, key, value):
        assert picks_rows(k, v, layout)
        return cached_attention(
            q, key, value, CachedLayer(k, v, spans, keeps, rows), layout, **rest
        )[0]

    with interpreted(), dispatch.enabling("mosaic"):
        ours = jax.jit(attend)(*new)
    assert not picks_rows(k, v, layout)
    q, key, value = new
    plain = CachedLayer(k[rows], v[rows], spans, keeps)
    theirs, _ = cached_attention(q, key, value, plain, layout, **rest)
    ours, theirs = (x.astype(jnp.float32) for x in (ours, theirs))
    assert float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)) < 4e-3
