"""Ring attention: keys and values travel around a mesh axis, queries stay.

Hop 0 attends to a device's own keys while the neighbours' are already on the way; P - 1 sends of K
and of V in their stored dtype are all the forward pass moves. One device is a ring of one, so local
attention is the same code.

Shapes: B batch, L local query tokens, H query heads, G key/value heads, K head_dim; P ring size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from parallax.kernels.ring_attention import (
    attention_step,
    attention_step_backward,
    empty_carry,
    finish,
)
from parallax.kernels.ring_attention.api import check_implementation
from parallax.parallel.order import check_order
from parallax.parallel.ring import OWN, Accumulators, Ring
from parallax.parallel.varying import vary_alike


class _Static(NamedTuple):
    axis_name: str | None
    is_causal: bool
    scale: float
    order: str
    implementation: str | None


def ring_attention(
    q: Float[Array, "b l h k"],
    k: Float[Array, "b l g k"],
    v: Float[Array, "b l g k"],
    *,
    axis_name: str | None,
    is_causal: bool = False,
    scale: float | None = None,
    segment_ids: Int[Array, "b l"] | None = None,
    order: str = "natural",
    implementation: str | None = None,
) -> Float[Array, "b l h k"]:
    """Exact attention over a sequence split across a mesh axis. Call it inside `jax.shard_map`.

    Args:
      q: [B, L, H, K], this device's queries.
      k, v: [B, L, G, K], this device's keys and values; G divides H and stays G on the wire.
      axis_name: mesh axis the sequence is split over, or None for a sequence that is whole.
      is_causal: a query sees keys at its own and earlier positions.
      scale: of the scores; None is head_dim ** -0.5.
      segment_ids: [B, L] of this device's tokens; tokens of different ids do not see each other.
      order: "natural" (contiguous pieces), or "zigzag": the inputs are already permuted by
        `to_order`, and a causal mask costs every device the same.
      implementation: of the step, see `parallax.kernels.ring_attention`.

    Returns:
      [B, L, H, K] in q's dtype, in the order of q. Softmax and sums are float32 (float64 for
      float64 inputs).

    Raises:
      ValueError: shapes that do not fit, an unknown order.
      NotImplementedError: an implementation that does not exist here, naming one that does.

    Cost: a device sends 2 (P-1) B L G K elements of k's dtype forward; backward those again and
      2 P B L G K float32 elements. FLOPs 4 B L (P L) H K forward, 10 backward; causal skips what
      it masks: zigzag (P + 0.5) / 2P of it on every device, natural on average the same but up to
      all of it on the last device. Differentiable once in reverse mode.

    Reference: Liu, Zaharia and Abbeel, "Ring Attention with Blockwise Transformers", 2023;
      zigzag order as in Brandon et al., "Striped Attention", 2023, with two chunks a device.
    """
    check_order(order)
    check_implementation(implementation)
    _check_shapes(q, k, v, segment_ids)
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    static = _Static(axis_name, is_causal, scale, order, implementation)
    q, k, v, segment_ids = vary_alike(q, k, v, segment_ids, also=axis_name)
    return _ring_attention(static, q, k, v, segment_ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_attention(static, q, k, v, segment_ids):
    return _forward(static, q, k, v, segment_ids)[0]


def _forward(static: _Static, q, k, v, segment_ids):
    ring = Ring(static.axis_name, static.is_causal, static.order, q.shape[1])
    queries = [Queries(*x) for x in ring.cut_all((q, 1), (segment_ids, 1))]

    def step(queries, keys, carry, **mask):
        return attention_step(
            queries.q, keys.k, keys.v, carry, scale=static.scale,
            q_segment_ids=queries.segment_ids, kv_segment_ids=keys.segment_ids,
            implementation=static.implementation, **mask,
        )  # fmt: skip

    def hop(carries, kv, i):
        keys = [Keys(*x) for x in ring.cut_all(*((x, 1) for x in kv))]
        return ring.visit(i, step, queries, keys, carries)

    carries = ring.travel(
        (k, v, segment_ids), hop, Accumulators([empty_carry(chunk.q) for chunk in queries], None)
    )
    chunks = [finish(carry, q.dtype) for carry in carries.of_queries]
    out = jnp.concatenate([out for out, _ in chunks], axis=1)
    return out, (q, k, v, segment_ids, out, jnp.concatenate([lse for _, lse in chunks], axis=2))


def _backward(static: _Static, saved, d_out):
    q, k, v, segment_ids, out, lse = saved
    ring = Ring(static.axis_name, static.is_causal, static.order, q.shape[1])
    delta = jnp.einsum("blhk,blhk->bhl", out.astype(lse.dtype), d_out.astype(lse.dtype))
    queries = [
        Queries(*x)
        for x in ring.cut_all((q, 1), (segment_ids, 1), (d_out, 1), (lse, 2), (delta, 2))
    ]

    def step(queries, keys, grads, **mask):
        dq, dk, dv = attention_step_backward(
            queries.q, keys.k, keys.v, queries.d_out, queries.lse, queries.delta,
            scale=static.scale, q_segment_ids=queries.segment_ids,
            kv_segment_ids=keys.segment_ids, implementation=static.implementation, **mask,
        )  # fmt: skip
        return grads[0] + dq, (grads[1][0] + dk, grads[1][1] + dv)

    def zeros(x):
        return x.astype(lse.dtype) * 0

    def hop(state, kv, i):
        """Keys' gradients travel one hop behind the keys; a device's share joins on arrival."""
        dq, travelling = state
        arrived = ring.send(travelling) if i is not OWN else travelling
        keys = [Keys(*x) for x in ring.cut_all(*((x, 1) for x in kv))]
        share = ring.visit(
            i, step, queries, keys, Accumulators(dq, [(zeros(c.k), zeros(c.v)) for c in keys])
        )
        dkv = [jnp.concatenate(x, axis=1) for x in zip(*(share.of_keys or ()), strict=True)]
        return share.of_queries, [a + b for a, b in zip(arrived, dkv, strict=True)]

    dq, dkv = ring.travel(
        (k, v, segment_ids), hop, ([zeros(chunk.q) for chunk in queries], [zeros(k), zeros(v)])
    )
    dk, dv = ring.send(dkv) if ring.size > 1 else dkv
    return jnp.concatenate(dq, axis=1).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_ring_attention.defvjp(_forward, _backward)


class Queries(NamedTuple):
    """What stays: one chunk of queries and all that has its length."""

    q: jax.Array
    segment_ids: jax.Array | None
    d_out: jax.Array | None = None
    lse: jax.Array | None = None
    delta: jax.Array | None = None


class Keys(NamedTuple):
    """What travels: one chunk of keys, values and, for packed sequences, segment ids."""

    k: jax.Array
    v: jax.Array
    segment_ids: jax.Array | None


def _check_shapes(q, k, v, segment_ids) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"ring_attention: expected q [B, L, H, K] and k, v [B, L, G, K] of one shape; "
            f"got q {q.shape}, k {k.shape}, v {v.shape}."
        )
    if (q.shape[0], q.shape[1], q.shape[3]) != (k.shape[0], k.shape[1], k.shape[3]):
        raise ValueError(
            f"ring_attention: q {q.shape} and k {k.shape} must agree in B, L and K. Queries and "
            "keys of one device are those of the same tokens."
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"ring_attention: {k.shape[2]} key/value heads do not divide {q.shape[2]} query heads."
        )
    if segment_ids is not None and segment_ids.shape != q.shape[:2]:
        raise ValueError(
            f"ring_attention: segment_ids must be [B, L] = {q.shape[:2]}, got {segment_ids.shape}."
        )
