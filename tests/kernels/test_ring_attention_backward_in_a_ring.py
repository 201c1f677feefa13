"""The backward of a ring's pairs by the Mosaic kernels, interpreted, and rows that see nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import attention_step_backward
from parallax.kernels.ring_attention.backward_cases import forward_sums
from parallax.parallel.order import to_order
from parallax.parallel.pairs import Accumulators, Pairs
from parallax.parallel.ring import OWN
from parallax.parallel.ring_attention import ring_attention
from parallax.parallel.scoring import CAUSAL

SCALE = 64**-0.5


def draw(heads, seed, length):
    values = np.random.default_rng(seed).normal(size=(1, length, heads, 64))
    return jnp.asarray(values, jnp.bfloat16)


def relative(a, b):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.full
def test_the_pairs_of_a_zigzag_ring():
    """All hops of both devices of two, by hand: the interpreter does not take several devices."""
    size, length = 2, 75  # chunks of 37 and 38: one pair in two has a limit
    q, k, v, d_out = whole = [draw(1, seed, size * length) for seed in range(4)]

    @jax.jit
    def expected(q, k, v, d_out):
        def attend(q, k, v):
            return ring_attention(q, k, v, axis_name=None, is_causal=True, implementation="xla")

        gradients = jax.vjp(attend, q, k, v)[1](d_out)
        sums = forward_sums(q, k, v, d_out, is_causal=True, scale=SCALE)
        return [to_order(x, size, "zigzag") for x in gradients], sums

    gradients, sums = expected(*whole)
    q, k, v, d_out = (to_order(x, size, "zigzag") for x in whole)
    lse, delta = (to_order(x.swapaxes(1, 2), size, "zigzag").swapaxes(1, 2) for x in sums)

    def piece(x, device, axis=1):
        return jax.lax.slice_in_dim(x, device * length, (device + 1) * length, axis=axis)

    def step(queries, keys, grads, **mask):
        q, d_out, lse, delta = queries
        k, v = keys
        dq, dk, dv = attention_step_backward(
            q, k, v, d_out, lse, delta, scale=SCALE, implementation="mosaic", **mask
        )
        return grads[0] + dq, (grads[1][0] + dk, grads[1][1] + dv)

    @jax.jit
    def run(q, k, v, d_out, lse, delta):
        """What each device adds to the gradients of its queries and of everyone's keys."""
        zero = q.astype(jnp.float32)[:, :length] * 0
        dq, dk, dv = [], [zero] * size, [zero] * size
        for me in range(size):
            pairs = Pairs(size, me, length, CAUSAL, "zigzag")
            queries = pairs.cut_all(
                (piece(q, me), 1), (piece(d_out, me), 1), (piece(lse, me, 2), 2),
                (piece(delta, me, 2), 2),
            )  # fmt: skip
            of_queries = [x[0].astype(jnp.float32) * 0 for x in queries]
            for device in (me, 1 - me):
                keys = pairs.cut_all((piece(k, device), 1), (piece(v, device), 1))
                zeros = [tuple(x.astype(jnp.float32) * 0 for x in chunk) for chunk in keys]
                source = OWN if device == me else jnp.int32(device)
                acc = pairs.visit(source, step, queries, keys, Accumulators(of_queries, zeros))
                of_queries = acc.of_queries
                of_keys = zip(*(acc.of_keys or ()), strict=True)
                mine = (jnp.concatenate(x, axis=1) for x in of_keys)
                dk[device], dv[device] = (
                    old + new for old, new in zip((dk[device], dv[device]), mine, strict=True)
                )
            dq.append(jnp.concatenate(of_queries, axis=1))
        return [jnp.concatenate(x, axis=1) for x in (dq, dk, dv)]

    with interpreted():
        found = run(q, k, v, d_out, lse, delta)
    for mine, right in zip(found, gradients, strict=True):
        assert relative(mine, right) < 1e-2


def test_keys_that_nobody_sees_have_no_gradient_and_such_queries_neither():
    """Also where the log-sum-exp of a query is -inf, and the keys hidden by a limit of 0."""
    q, k, v, d_out = (draw(1, seed, 70) for seed in range(4))
    zeros = jnp.zeros((1, 1, 70), jnp.float32)
    nothing = zeros - jnp.inf, zeros

    def run(limit, lse, delta):
        with interpreted():
            return attention_step_backward(
                q, k, v, d_out, lse, delta, is_causal=False, scale=SCALE,
                kv_length=jnp.int32(limit), implementation="mosaic",
            )  # fmt: skip

    assert all(bool((x == 0).all()) for x in run(0, *nothing))
    seen = forward_sums(q, k, v, d_out, is_causal=False, scale=SCALE, kv_length=jnp.int32(3))
    dq, dk, dv = run(3, *seen)
    assert all(bool((x[:, 3:] == 0).all()) for x in (dk, dv))
    assert all(bool((x != 0).any(axis=-1).all()) for x in (dq, dk[:, :3], dv[:, :3]))
