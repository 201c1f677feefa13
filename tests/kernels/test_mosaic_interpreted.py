"""The Mosaic kernel in its interpreter: copies, barriers and wgmma emulated, races seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels.interpreting import interpreter
from parallax.kernels.ring_attention import Carry, attention_step, empty_carry, finish, mosaic
from parallax.kernels.ring_attention.cases import SMALL, exact, inputs


def mosaic_step(q, k, v, carry, *, is_causal, scale, kv_length=None):
    return Carry(
        *mosaic.step(q, k, v, *carry, is_causal=is_causal, kv_length=kv_length, scale=scale,
                     interpret=interpreter())
    )  # fmt: skip


def error_of(case, step, arrays, expected):
    """Of the normalised output, against float64, on top of what earlier keys left."""
    q, k, v, k_earlier, v_earlier = map(jnp.asarray, arrays)
    scale = case.head_dim**-0.5

    @jax.jit
    def run(q, k, v, k_earlier, v_earlier, limit):
        carry = attention_step(
            q, k_earlier, v_earlier, empty_carry(q), is_causal=False, scale=scale
        )
        return step(q, k, v, carry, is_causal=case.is_causal, scale=scale, kv_length=limit)

    limit = None if case.limit is None else jnp.int32(case.limit)
    carry = run(q, k, v, k_earlier, v_earlier, limit)
    assert [x.shape for x in carry] == [x.shape for x in empty_carry(q)]
    found = np.asarray(finish(carry, jnp.float32)[0], np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_error_is_that_of_xla_or_less(case):
    """XLA rounds the weights to the inputs' dtype before the product, as the kernel does."""
    arrays = inputs(case, seed=1)
    expected = exact(case, *arrays)
    ours = error_of(case, mosaic_step, arrays, expected)
    theirs = error_of(case, attention_step, arrays, expected)
    print(f"{case.name}: error {ours:.3g}, XLA {theirs:.3g}")
    assert ours <= 1.2 * theirs
    assert theirs < 1e-2


def test_steps_chain_and_rows_that_see_nothing_stay_empty():
    """Three steps, the first without a single key, are one call."""
    case = SMALL[0]
    q, k, v, *_ = map(jnp.asarray, inputs(case, seed=2))
    step = functools.partial(mosaic_step, is_causal=False, scale=0.125)
    nothing = step(q, k[:, :64], v[:, :64], empty_carry(q), kv_length=jnp.int32(0))
    assert bool((nothing.l == 0).all())
    assert bool(jnp.isneginf(nothing.m).all())
    assert bool((nothing.o == 0).all())
    chained = step(q, k[:, 77:], v[:, 77:], step(q, k[:, :77], v[:, :77], nothing))
    whole = step(q, k, v, empty_carry(q))
    for a, b in zip(finish(chained, jnp.float32), finish(whole, jnp.float32), strict=True):
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 2e-3


def test_a_tile_with_one_stage_is_the_same():
    """Producer and consumers take turns on one buffer: barriers, not luck, keep it right."""
    case = SMALL[1]
    arrays = inputs(case, seed=3)
    expected = exact(case, *arrays)
    tile = mosaic.TILES[case.head_dim]._replace(stages=1, keys=64)

    def step(q, k, v, carry, *, is_causal, scale, kv_length):
        return Carry(*mosaic.step(q, k, v, *carry, is_causal=is_causal, kv_length=kv_length,
                                  scale=scale, tile=tile, interpret=interpreter()))  # fmt: skip

    assert error_of(case, step, arrays, expected) < 1e-2
