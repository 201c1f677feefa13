"""The ring attention: keys and values travel around mesh axes while queries stay.

Hop 0 attends to a device's own keys while its neighbour's keys are already travelling. A forward
pass moves nothing but P - 1 sends of K and V in their stored dtype. One device is a ring of one, so
local attention is the same code, and so is a shard of the queries with all keys on its device.

Shapes: B batch, L local query tokens, H query heads, G key/value heads, K head_dim, V width of the
values; P ring size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from parallax.kernels import dispatch
from parallax.kernels.ring_attention import (
    Carry,
    attention_step,
    attention_step_backward,
    empty_carry,
    finish,
)
from parallax.kernels.ring_attention.tiles import kind_of, shipped_tile, unsupported
from parallax.parallel import library_attention
from parallax.parallel.order import check_order
from parallax.parallel.pairs import Accumulators, Pairs
from parallax.parallel.remat import attention_result
from parallax.parallel.ring import Around, Neighbours, Path, QueryShards
from parallax.parallel.scoring import Scoring
from parallax.parallel.varying import reverse_only, vary_alike


class _Static(NamedTuple):
    path: Path
    scoring: Scoring
    scale: float
    order: str
    partial_over: str | None
    implementation: str | None
    by_kernel: bool  # forward
    enabled: tuple[str, ...]
    shared: int | None  # width of values that are the first elements of the keys

    def pairs(self, length: int) -> Pairs:
        return Pairs(
            self.path.size, self.path.index(), length, self.scoring, self.order,
            may_branch=self.partial_over is None,
        )  # fmt: skip

    @property
    def step(self) -> dict[str, Any]:
        """The arguments of every step."""
        return {
            "scale": self.scale, "cap": self.scoring.cap, "partial_over": self.partial_over,
            "implementation": self.implementation,
        }  # fmt: skip


def ring_attention(
    q: Float[Array, "b l h k"],
    k: Float[Array, "b l g k"],
    v: Float[Array, "b l g v"] | None,
    *,
    axis_name: str | tuple[str, ...] | None,
    is_causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
    sinks: Float[Array, " h"] | None = None,
    segment_ids: Int[Array, "b l"] | None = None,
    order: str = "natural",
    partial_over: str | None = None,
    implementation: str | None = None,
    value_dim: int | None = None,
) -> Float[Array, "b l h v"]:
    """Compute exact attention over a sequence split across mesh axes, inside `jax.shard_map`.

    Args:
      q: [B, L, H, K], this device's queries.
      k, v: [B, L, G, K] and [B, L, G, V], this device's keys and values; G divides H, and only G
        heads travel. If v is None, the values are the first V = `value_dim` elements of the keys,
        and the keys alone travel.
      axis_name: mesh axis that splits the sequence; several, major first, for nested rings; or
        None for a whole sequence.
      is_causal: a query sees keys at its own and earlier positions.
      scale: scale of the scores; None is head_dim ** -0.5.
      window: tokens that a query sees, its own and those before it; needs is_causal. In natural
        order, keys then travel only to the devices that see them.
      cap: scores s become cap * tanh(s / cap), before the mask.
      sinks: [H], every head's score of one more key, which has no value.
      segment_ids: [B, L] for this device's tokens; tokens with different ids do not see each other.
      order: "natural" (contiguous pieces), or "zigzag": the inputs are already permuted by
        `to_order`, and a causal mask costs every device the same.
      partial_over: mesh axis over which K and V are split: partial scores are summed over it, and
        head_dim is the whole K.
      implementation: of the step, "mosaic" or "xla", see `parallax.kernels.ring_attention`; or
        "cudnn", the library's attention of a whole sequence. None takes the fastest validated one
        that supports the inputs (`parallax.kernels.dispatch`).
      value_dim: V, if v is None.

    Returns:
      [B, L, H, V] in q's dtype, in the order of q. Softmax and sums are float32 (float64 for
      float64 inputs).

    Raises:
      ValueError: shapes that do not match, or an unknown order.
      NotImplementedError: an implementation that does not support this; the error names one that
        does.

    Cost: a device sends (P-1) B L G (K + V) elements of k's dtype forward; backward, those again
      and P B L G (K + V) float32 elements. Without v, K stands for K + V there. Over two mesh axes
      N x S, the outer one has N - 1 sends (N backward), the inner one N (S - 1) (N S backward):
      keys cross the slow link once per node.
      FLOPs are 2 B L (P L) H (K + V) forward and 2.5 times that backward (3.5 times by "mosaic",
      4.5 for heads of 512, which recompute scores). A causal mask skips masked blocks: zigzag
      computes (P + 0.5) / 2P of the FLOPs on every device, natural the same on average but up to
      all of them on the last device. Differentiable once in reverse mode. With partial_over, all
      scores are also summed, and a natural causal ring skips only its own half. A window in natural
      order has h = min(P - 1, ceil((window - 1) / L)) sends forward, around one flat ring, and
      backward h again and h of gradients; in zigzag order all, since it reaches both neighbours.

    Reference: Liu, Zaharia and Abbeel, "Ring Attention with Blockwise Transformers", 2023;
      zigzag order as in Brandon et al., "Striped Attention", 2023, with two chunks per device;
      double ring as in Gu et al., "LoongTrain", 2024.
    """
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    scoring = Scoring(is_causal, window, scale, cap)
    path = Around(axes)
    if window is not None and order == "natural" and path.size > 1:
        path = Neighbours(axes, scoring.reached(q.shape[1], path.size))
    return _attend(
        path, q, k, v, segment_ids, segment_ids, scoring, sinks, order, partial_over,
        implementation, value_dim,
    )  # fmt: skip


def query_shard_attention(
    q: Float[Array, "b l h k"],
    k: Float[Array, "b m g k"],
    v: Float[Array, "b m g v"],
    *,
    axis_name: str,
    shards: int,
    scoring: Scoring,
    sinks: Float[Array, " h"] | None,
    segment_ids: Int[Array, "b m"] | None,
    order: str,
) -> Float[Array, "b l h v"]:
    """Compute exact attention of one shard of the queries to all keys, inside `jax.shard_map`.

    Args:
      q: [B, M / shards, H, K]; the device with index i on `axis_name` has shard i % shards.
      k, v: [B, M, G, K] and [B, M, G, V] of the whole sequence, permuted by `to_order`.
      scoring, sinks: the rule of the scores, and these heads' sinks.
      Others: as in `ring_attention`; segment_ids are those of k.

    Cost: nothing moves; FLOPs are those of one device of a ring of `shards`.
    """
    path = QueryShards(axis_name, shards)
    q_ids = segment_ids
    if segment_ids is not None:
        q_ids = lax.dynamic_slice_in_dim(segment_ids, path.index() * q.shape[1], q.shape[1], axis=1)
    return _attend(path, q, k, v, q_ids, segment_ids, scoring, sinks, order, None, None)


def _attend(
    path, q, k, v, q_ids, kv_ids, scoring: Scoring, sinks, order, partial_over, implementation,
    value_dim=None,
):  # fmt: skip
    check_order(order)
    values = k[..., :value_dim] if v is None else v
    pieces = path.size if isinstance(path, QueryShards) else 1
    _check_shapes(q, k, values, q_ids, kv_length=q.shape[1] * pieces)
    scale = scoring.scale
    if scale is None:
        slices = 1 if partial_over is None else lax.axis_size(partial_over)
        scale = (q.shape[-1] * slices) ** -0.5
    has_ids, window, cap = q_ids is not None, scoring.window, scoring.cap
    by_library = library_attention.unsupported(q, k, values, path.axes, has_ids, partial_over)
    if window is not None or cap is not None or sinks is not None:
        by_library = "it is called without windows, capped scores and sinks"
    reasons = {
        "mosaic": unsupported(q, k, values, scale, partial_over, cap=cap),
        "cudnn": by_library,
        "xla": None,
    }
    kind = kind_of(q, scoring.is_causal, is_whole=path.size == 1 and not has_ids)
    chosen = dispatch.choose(
        "ring_attention", implementation, reasons, kind=kind, kernel="attention_step"
    )
    if chosen == "cudnn":
        return library_attention.attend(
            q, k, values, is_causal=scoring.is_causal, scale=float(scale)
        )
    by_kernel = chosen == "mosaic"
    # Steps use no other kernel; the reasons have been recorded.
    enabled = dispatch.enabled() if by_kernel else ()
    static = _Static(
        path,
        scoring,
        float(scale),
        order,
        partial_over,
        implementation,
        by_kernel,
        enabled,
        value_dim if v is None else None,
    )
    inputs = vary_alike(q, k, v, q_ids, kv_ids, sinks, also=path.axes)
    return reverse_only("ring_attention", lambda: _attention(static, *inputs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, q_ids, kv_ids, sinks):
    return _forward(static, q, k, v, q_ids, kv_ids, sinks)[0]


def _as_enabled(run: Callable) -> Callable:
    """Run with the kernels enabled at the call of attention, since gradients are traced later."""

    @functools.wraps(run)
    def traced(static, *args):
        with dispatch.enabling(*static.enabled):
            return run(static, *args)

    return traced


@_as_enabled
def _forward(static: _Static, q, k, v, q_ids, kv_ids, sinks):
    pairs = static.pairs(q.shape[1])
    # Padded once here, so that steps need not copy the queries and the carry each time.
    is_ring = static.by_kernel and static.path.size > 1
    cuts = list(pairs.cut_all((q, 1), (q_ids, 1)))
    if is_ring:
        rows = [shipped_tile(x.shape).cluster_queries for x, _ in cuts]
        cuts = [(pad_queries(x, n), ids) for n, (x, ids) in zip(rows, cuts, strict=True)]
    queries = [Queries(x, ids) for x, ids in cuts]

    def step(queries, keys, carry, **mask):
        return attention_step(
            queries.q, keys.k, keys.v, carry, q_segment_ids=queries.segment_ids,
            kv_segment_ids=keys.segment_ids, sinks=sinks if carry is None else None,
            **static.step, **mask,
        )  # fmt: skip

    def end(carry):
        return finish(carry, q.dtype)

    def hop(carries, kv, source, last):
        keys = _cut_keys(pairs, kv, width, shared)
        ended = end if last else None
        carries = pairs.visit(source, step, queries, keys, carries, finish=ended)
        # A chunk without tokens has met none of its own.
        chunks = zip(carries.of_queries, queries, strict=True)
        made = [empty_carry(x.q, values, sinks) if c is None else c for c, x in chunks]
        return carries._replace(of_queries=made), ()

    width, shared = k.shape[-1], static.shared
    values = v.shape[-1] if shared is None else shared
    nothing = Accumulators([None] * len(queries), None)
    carries, _ = static.path.travel(
        (_joined(k, v), kv_ids), hop, nothing, unroll=2 if static.by_kernel else 1
    )
    chunks = [end(x) if isinstance(x, Carry) else x for x in carries.of_queries]
    lengths = pairs.lengths
    out = jnp.concatenate([x[:, :n] for (x, _), n in zip(chunks, lengths, strict=True)], axis=1)
    lse = jnp.concatenate([x[:, :, :n] for (_, x), n in zip(chunks, lengths, strict=True)], axis=2)
    out, lse = (attention_result(x) for x in (out, lse))
    return out, (q, k, v, q_ids, kv_ids, sinks, out, lse)


@_as_enabled
def _backward(static: _Static, saved, d_out):
    q, k, v, q_ids, kv_ids, sinks, out, lse = saved
    pairs = static.pairs(q.shape[1])
    delta = jnp.einsum("blhv,blhv->bhl", out.astype(lse.dtype), d_out.astype(lse.dtype))
    if static.partial_over is not None:
        delta = lax.psum(delta, static.partial_over)
    queries = [
        Queries(*x) for x in pairs.cut_all((q, 1), (q_ids, 1), (d_out, 1), (lse, 2), (delta, 2))
    ]

    def step(queries, keys, grads, **mask):
        dq, dk, dv = attention_step_backward(
            queries.q, keys.k, keys.v, queries.d_out, queries.lse, queries.delta,
            q_segment_ids=queries.segment_ids, kv_segment_ids=keys.segment_ids, **static.step,
            **mask,
        )  # fmt: skip
        return grads[0] + dq, (grads[1][0] + dk, grads[1][1] + dv)

    def zeros(x):
        return x.astype(lse.dtype) * 0

    width, shared = k.shape[-1], static.shared

    def hop(dq, kv, source, last):
        del last
        keys = _cut_keys(pairs, kv, width, shared)
        share = pairs.visit(
            source, step, queries, keys, Accumulators(dq, [(zeros(c.k), zeros(c.v)) for c in keys])
        )
        dkv = zip(*(share.of_keys or ()), strict=True)
        dk, dv = (jnp.concatenate(x, axis=1) for x in dkv)
        return share.of_queries, _joined(dk, dv) if shared is None else _added(dk, dv)

    def home(share):
        return share.astype(k.dtype)

    start = [zeros(chunk.q) for chunk in queries]
    dq, dkv = static.path.travel((_joined(k, v), kv_ids), hop, start, home)
    dk, dv = dkv[..., :width].astype(k.dtype), None
    if v is not None:
        dv = dkv[..., width:].astype(v.dtype)
    dq = jnp.concatenate(dq, axis=1).astype(q.dtype)
    d_sinks = None if sinks is None else _sinks_gradient(static, sinks, lse, delta)
    return dq, dk, dv, None, None, d_sinks


_attention.defvjp(_forward, _backward)


def _sinks_gradient(static: _Static, sinks, lse, delta):
    """Return the gradient of the sinks' scores, of this device's queries and of all slices once."""
    share = jnp.exp(sinks.astype(lse.dtype)[None, :, None] - lse) * delta
    slices = 1 if static.partial_over is None else lax.axis_size(static.partial_over)
    return (-share.sum((0, 2)) / slices).astype(sinks.dtype)


def _joined(k, v):
    """Join keys and values into one array along their width, so that they travel together.

    XLA has one transfer in flight at a time and waits for the others. Without v, keys alone travel.
    """
    return k if v is None else jnp.concatenate([k, v], axis=-1)


def _added(dk, dv):
    """Add the gradient of values, which are the first elements of the keys, to that of the keys."""
    return dk + jnp.pad(dv, [(0, 0)] * (dv.ndim - 1) + [(0, dk.shape[-1] - dv.shape[-1])])


def pad_queries(q: jax.Array, rows: int) -> jax.Array:
    """Pad queries [B, L, H, K] with zeros at the end, to a multiple of `rows`."""
    missing = -q.shape[1] % rows
    return jnp.pad(q, [(0, 0), (0, missing), (0, 0), (0, 0)]) if missing else q


def _cut_keys(pairs: Pairs, kv: tuple, width: int, shared: int | None) -> list["Keys"]:
    """Cut joined keys and values, and their segment ids, into chunks.

    Keys are `width` wide; values follow, or are the first `shared` elements of the keys.
    """
    joined, ids = kv
    values = joined[..., width:] if shared is None else joined[..., :shared]
    return [Keys(*x) for x in pairs.cut_all((joined[..., :width], 1), (values, 1), (ids, 1))]


class Queries(NamedTuple):
    """One chunk of queries, which stays, and all arrays of its length."""

    q: jax.Array
    segment_ids: jax.Array | None
    d_out: jax.Array | None = None
    lse: jax.Array | None = None
    delta: jax.Array | None = None


class Keys(NamedTuple):
    """One chunk of keys and values, which travels, with segment ids for packed sequences."""

    k: jax.Array
    v: jax.Array
    segment_ids: jax.Array | None


def _check_shapes(q, k, v, segment_ids, kv_length: int) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"ring_attention: expected q [B, L, H, K], k [B, L, G, K] and v [B, L, G, V] of the "
            f"same tokens and heads; got q {q.shape}, k {k.shape}, v {v.shape}."
        )
    if (q.shape[0], kv_length, q.shape[3]) != (k.shape[0], k.shape[1], k.shape[3]):
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
