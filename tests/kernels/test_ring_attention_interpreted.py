"""The attention step's Mosaic kernel, interpreted: steps that chain, buffers that take turns."""

import functools

import jax
import jax.numpy as jnp
import pytest

from parallax.kernels.errors import relative_error
from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import attention_step, empty_carry, finish
from parallax.kernels.ring_attention.cases import SMALL, exact, inputs, program
from parallax.kernels.ring_attention.tiles import CANDIDATES, DEFAULTS


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


@pytest.mark.parametrize("ahead", [False, True])
def test_a_tile_with_one_stage_is_the_same(monkeypatch, ahead):
    """Producer and consumers take turns on one buffer: barriers, not luck, keep it right."""
    case = SMALL[1]
    arrays = inputs(case, seed=3)
    expected = exact(case, *arrays)
    tiles, name = CANDIDATES[case.head_dim], DEFAULTS[case.head_dim]
    monkeypatch.setitem(tiles, name, tiles[name]._replace(stages=1, keys=64, ahead=ahead))
    with interpreted():
        found = jax.jit(program(case, "mosaic"))(*arrays)
    for mine, right in zip(found, expected, strict=True):
        assert relative_error(mine, right) < 1e-2


def test_a_step_has_no_gradient_of_its_own_and_says_what_has():
    q, k, v, *_ = map(jnp.asarray, inputs(SMALL[0], seed=2))

    def loss(q):
        carry = attention_step(
            q, k, v, empty_carry(q), is_causal=False, scale=0.125, implementation="mosaic"
        )
        return carry.o.sum()

    with interpreted(), pytest.raises(NotImplementedError, match="ring_attention, which has one"):
        jax.eval_shape(jax.grad(loss), q)
