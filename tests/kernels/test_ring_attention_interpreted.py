"""The attention step's Mosaic kernel, interpreted: steps that chain, buffers that take turns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels.errors import relative_error
from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import (
    attention_step,
    attention_step_backward,
    empty_carry,
    finish,
    mosaic,
)
from parallax.kernels.ring_attention.cases import SMALL, Case, exact, inputs, program
from parallax.kernels.ring_attention.tiles import CANDIDATES, Tile


def test_steps_chain_and_rows_that_see_nothing_stay_empty():
    """Three steps, the first without a single key, are one call."""
    q, k, v, *_ = map(jnp.asarray, inputs(SMALL[0], seed=2))
    step = functools.partial(attention_step, is_causal=False, scale=0.125, implementation="mosaic")
    with interpreted():
        nothing = step(q, k[:, :64], v[:, :64], empty_carry(q), kv_length=jnp.int32(0))
        out, lse = step(q, k[:, :64], v[:, :64], None, kv_length=jnp.int32(0), last=True)
        chained = step(q, k[:, 77:], v[:, 77:], step(q, k[:, :77], v[:, :77], nothing))
        whole = step(q, k, v, empty_carry(q))
    assert bool((nothing.l == 0).all())
    assert bool(jnp.isneginf(nothing.m).all())
    assert bool((nothing.o == 0).all())
    assert bool((out == 0).all())
    assert bool(jnp.isneginf(lse).all())
    for a, b in zip(finish(chained, jnp.float32), finish(whole, jnp.float32), strict=True):
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 2e-3


@pytest.mark.parametrize("warpgroups", [1, 2])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_tile_with_one_stage_is_the_same(monkeypatch, ahead, warpgroups):
    """Producer and consumers take turns on one buffer: barriers, not luck, keep it right."""
    case = Case(64, "float16", 137, 137, heads=2, is_causal=True, tile="turns")
    arrays = inputs(case, seed=3)
    expected = exact(case, *arrays)
    tile = Tile(64, stages=1, ahead=ahead, turns=warpgroups == 2, warpgroups=warpgroups)
    monkeypatch.setitem(CANDIDATES[case.head_dim], "turns", tile)
    with interpreted():
        found = jax.jit(program(case, "mosaic"))(*arrays)
    for mine, right in zip(found, expected, strict=True):
        assert relative_error(mine, right) < 1e-2


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize(
    "case",
    [
        Case(64, "bfloat16", 300, 300, heads=2, is_causal=True),
        Case(128, "float16", 400, 200, heads=4, kv_heads=2, batch=2, limit=131),
        Case(128, "bfloat16", 400, 400, is_causal=True, segments=3),
        Case(256, "bfloat16", 300, 300, is_causal=True, window=90, sinks=True),
        Case(512, "float16", 300, 150, heads=2, sinks=True),
    ],
    ids=lambda case: case.name,
)
def test_blocks_that_take_several_tiles_are_exact(monkeypatch, case, blocks):
    """Barriers count on from one tile to the next; a missed or early phase ends in an error."""
    (tile,) = (name for name, tile in CANDIDATES[case.head_dim].items() if tile.persistent)
    monkeypatch.setattr(mosaic, "MULTIPROCESSORS", blocks)
    case = case._replace(first=True, last=True, tile=tile)
    arrays = inputs(case, seed=5)
    with interpreted():
        found = jax.jit(program(case, "mosaic"))(*arrays)
    for mine, right in zip(found, exact(case, *arrays), strict=True):
        assert relative_error(mine, right) < 3e-3


def test_a_tiling_for_whole_attention_refuses_a_carry():
    case = Case(64, "float16", 137, 137, tile="turns, persistent")
    with interpreted(), pytest.raises(ValueError, match="neither takes nor returns a carry"):
        jax.eval_shape(program(case, "mosaic"), *inputs(case, seed=3))


def test_a_step_has_no_gradient_of_its_own_and_says_what_has():
    q, k, v, *_ = map(jnp.asarray, inputs(SMALL[0], seed=2))

    def loss(q):
        carry = attention_step(
            q, k, v, empty_carry(q), is_causal=False, scale=0.125, implementation="mosaic"
        )
        return carry.o.sum()

    with interpreted(), pytest.raises(NotImplementedError, match="ring_attention, which has one"):
        jax.eval_shape(jax.grad(loss), q)


def test_segments_in_any_order_are_exact_and_blocks_of_others_are_not_read():
    """The second tile of queries shares no segment with the outer blocks, which are then NaN."""
    random = np.random.default_rng(0)
    tiles = ([[5, -3, 7], [100, 101]], [[5, -3], [101, 100], [7, 5]])
    q_ids, kv_ids = (
        jnp.asarray(np.concatenate([random.choice(x, 128) for x in ids])[None], jnp.int32)
        for ids in tiles
    )
    q, k, v, d_out = (
        jnp.asarray(random.normal(size=(1, n, 1, 64)), jnp.bfloat16) for n in (256, 384, 384, 256)
    )
    others_q, others_kv = np.arange(256) < 128, np.arange(384) // 128 != 1

    def run(implementation, *arrays):
        q, k, v, d_out = arrays
        options = {
            "is_causal": False, "scale": 0.125, "q_segment_ids": q_ids, "kv_segment_ids": kv_ids,
            "implementation": implementation,
        }  # fmt: skip
        out, lse = attention_step(q, k, v, None, last=True, **options)
        delta = jnp.einsum("blhv,blhv->bhl", out.astype(lse.dtype), d_out.astype(lse.dtype))
        return out, *attention_step_backward(q, k, v, d_out, lse, delta, **options)

    def poisoned(x, where):
        return jnp.where(jnp.asarray(where)[:, None, None], jnp.asarray(jnp.nan, x.dtype), x)

    with interpreted():
        found = run("mosaic", q, k, v, d_out)
        of_queries = run("mosaic", q, poisoned(k, others_kv), poisoned(v, others_kv), d_out)[:2]
        of_keys = run("mosaic", poisoned(q, others_q), k, v, poisoned(d_out, others_q))[2:]
    for mine, right in zip(found, run("xla", q, k, v, d_out), strict=True):
        assert relative_error(mine, right) < 6e-3
    for mine, same, others in zip(
        found, (*of_queries, *of_keys), (others_q,) * 2 + (others_kv,) * 2, strict=True
    ):
        np.testing.assert_array_equal(mine[:, ~others], same[:, ~others])
        assert not np.isfinite(same[:, others]).any()
