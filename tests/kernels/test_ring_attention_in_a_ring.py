"""Attention that calls the Mosaic kernel, interpreted: plain with gradients, and a ring's pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import attention_step, finish
from parallax.kernels.ring_attention.tiles import shipped_tile
from parallax.parallel.order import to_order
from parallax.parallel.pairs import Accumulators, Pairs
from parallax.parallel.ring import OWN
from parallax.parallel.ring_attention import pad_queries, ring_attention
from parallax.parallel.scoring import CAUSAL


@pytest.fixture(autouse=True)
def on_a_cpu():
    with interpreted():
        yield


def draw(heads, seed, length):
    values = np.random.default_rng(seed).normal(size=(1, length, heads, 64))
    return jnp.asarray(values, jnp.bfloat16)


def relative(a, b):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def test_plain_attention_and_its_gradients():
    q, k, v = draw(2, 0, 70), draw(1, 1, 70), draw(1, 2, 70)

    def loss(q, k, v, implementation):
        out = ring_attention(q, k, v, axis_name=None, is_causal=True, implementation=implementation)
        return (out.astype(jnp.float32) ** 2).sum(), out

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
    (_, ours), ours_grads = run(q, k, v, "mosaic")
    (_, theirs), theirs_grads = run(q, k, v, "xla")
    assert relative(ours, theirs) < 4e-3
    for mine, other in zip(ours_grads, theirs_grads, strict=True):
        assert relative(mine, other) < 1e-2


def test_windows_segments_and_sinks_reach_the_kernel():
    q, k, v = draw(2, 0, 70), draw(1, 1, 70), draw(1, 2, 70)
    ids = jnp.asarray(np.arange(70)[None] // 30, jnp.int32)

    def attend(implementation, **options):
        return ring_attention(
            q, k, v, axis_name=None, is_causal=True, implementation=implementation, **options
        )

    options = {"window": 20, "segment_ids": ids, "sinks": jnp.asarray([0.5, 2.0])}
    found = attend("mosaic", **options)
    assert relative(found, attend("xla", **options)) < 4e-3
    for name in options:  # each of them matters
        others = {x: y for x, y in options.items() if x != name}
        assert relative(found, attend("xla", **others)) > 0.05


@pytest.mark.full
@pytest.mark.parametrize("rows", [1, shipped_tile((1, 75, 1, 64)).cluster_queries])
def test_the_pairs_of_a_zigzag_ring(rows):
    """All hops of a device of two, by hand: the interpreter does not take several devices.

    With queries as they are, and padded for all steps as a ring does.
    """
    size, me, length = 2, 1, 75  # chunks of 37 and 38: one pair in two has a limit
    whole = [draw(1, seed, size * length) for seed in range(3)]
    expected = ring_attention(*whole, axis_name=None, is_causal=True, implementation="xla")
    q, k, v = (to_order(x, size, "zigzag") for x in whole)
    pairs = Pairs(size, me, length, CAUSAL, "zigzag")

    def step(queries, keys, carry, **mask):
        return attention_step(
            queries[0], keys[0], keys[1], carry, scale=64**-0.5, implementation="mosaic", **mask
        )

    def piece(x, device):
        return x[:, device * length : (device + 1) * length]

    @jax.jit
    def run(q, k, v):
        queries = [(pad_queries(x, rows),) for (x,) in pairs.cut_all((piece(q, me), 1))]
        acc = Accumulators([None] * len(queries), None)
        for device in (me, 0):
            keys = pairs.cut_all((piece(k, device), 1), (piece(v, device), 1))
            source = OWN if device == me else jnp.int32(device)
            end = None if device == me else lambda carry: finish(carry, q.dtype)
            acc = pairs.visit(source, step, queries, keys, acc, finish=end)
        cut = [out[:, :n] for (out, _), n in zip(acc.of_queries, pairs.lengths, strict=True)]
        return jnp.concatenate(cut, axis=1)

    assert relative(run(q, k, v), piece(to_order(expected, size, "zigzag"), me)) < 4e-3
