"""The attention of one new token to cached keys: the cache stays in place, the query travels.

Every device attends from the queries of all its sequences to its slots, and partial softmaxes are
combined over the devices that hold other slots of the same sequences. Shapes: B sequences in the
cache on this device, b of them (or all) outside of attention; H query heads, G key/value heads, C
slots, S spans of slots, K head_dim, V width of the values.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from parallax.bounds import Role, Transfer, transfer
from parallax.kernels import dispatch
from parallax.kernels.decode_attention import NewToken, decode_attention
from parallax.kernels.decode_attention.reference import finite
from parallax.kernels.decode_attention.tiles import kind_of, unsupported
from parallax.kernels.ring_attention import Carry
from parallax.parallel.attention_part import AttentionShape, KvLayout, Sizes, size_over
from parallax.parallel.scoring import Scoring


class CachedLayer(NamedTuple):
    """One layer's cache, as its attention reads it.

    Attributes:
      keys: [B, G, C, K] in this device's slots, already rotated by position.
      values: [B, G, C, V]; None if values are the first elements of the keys.
      spans: [B, S, 2], the slots that hold a token in the layer's window: start <= i < end for each
        (start, end).
      keeps: scalar bool, whether this device keeps the new token (one device of those that split
        the slots does).
      rows: [B], the sequences' rows, if keys and values have more rows than there are sequences.
      implementation: an implementation of `parallax.kernels.decode_attention`; None chooses.
    """

    keys: Float[Array, "b g c k"]
    values: Float[Array, "b g c v"] | None
    spans: Int[Array, "b s 2"]
    keeps: Bool[Array, ""]
    rows: Int[Array, " b"] | None = None
    implementation: str | None = None


def picks_rows(keys: jax.Array, values: jax.Array | None, layout: KvLayout) -> bool:
    """Return whether attention to these selects `CachedLayer.rows` itself and reads no others.

    Our kernel does, because XLA would copy rows that are selected for it. XLA's own attention
    reads selected rows in place, and would copy rows to select them itself.
    """
    if unsupported(keys, keys, values, 1.0, None, False, layout.slice_axes) is not None:
        return False
    able = {"mosaic": None, "xla": None}
    return dispatch.choose("decode_attention", None, able, kind=kind_of(keys)) == "mosaic"


class CachedLayers(NamedTuple):
    """The cache of a stack of layers.

    Attributes:
      keys, values: [N, ...], stacked; values are None where layers' are.
      of_layer: (one layer's keys, values, its window or None) -> its CachedLayer. Selecting
        sequences there, and not for all layers beforehand, lets XLA read them in place.
    """

    keys: jax.Array
    values: jax.Array | None
    of_layer: Callable[[jax.Array, jax.Array | None, int | None], CachedLayer]


def cached_attention(
    q: Float[Array, "b 1 h k"],
    k: Float[Array, "b 1 g k"],
    v: Float[Array, "b 1 g v"] | None,
    cache: CachedLayer,
    layout: KvLayout,
    *,
    scoring: Scoring,
    sinks: Float[Array, " h"] | None = None,
    value_dim: int | None = None,
) -> tuple[Float[Array, "b 1 h v"], tuple[jax.Array, jax.Array | None]]:
    """Return exact attention of one new token per sequence. Call it inside `jax.shard_map`.

    Args:
      q, k, v: the new token's [b, 1, H, K], [b, 1, G, K] and [b, 1, G, V]; K and V are slices if
        the layout says so. If v is None, values are the first `value_dim` elements of the keys.
      cache: this layer's cache.
      layout: the layout of the cache over devices.
      scoring: the rule of the scores; the cache's spans are those of its window.
      sinks: [H], the scores of these heads' sinks, or None.
      value_dim: V, if v is None.

    Returns:
      [b, 1, H, V] in q's dtype and sharding, and the new token's keys and values [B, G, K] and
      [B, G, V] (or None) in the cache's sharding, on every device that shares the slots.

    Cost: `cached_transfers`; 2 B H (C + 1) (K + V) FLOPs; reads B G C (K + V) elements once
      (without v: B G C K elements).
    Reference: partial softmaxes as in Milakov and Gimelshein, 2018; queries that travel instead of
      keys as in Yang et al., "Context Parallelism for Scalable Million-Token Inference", 2024.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    together = _gathered(jnp.concatenate([q, k] if v is None else [q, k, v], axis=2), layout)
    q, k, *values = jnp.split(
        together[:, 0], (heads,) if v is None else (heads, heads + kv_heads), axis=1
    )
    v = values[0] if values else None
    slices = lax.axis_size(layout.slice_axes) if layout.slice_axes else 1
    whole = q.shape[-1] * slices
    partial = decode_attention(
        q, cache.keys, cache.values,
        scale=float(whole**-0.5 if scoring.scale is None else scoring.scale), cap=scoring.cap,
        kv_spans=cache.spans, kv_rows=cache.rows, new=NewToken(k, v, cache.keeps),
        sinks=None if sinks is None else jnp.where(cache.keeps, sinks, -jnp.inf),
        window=scoring.window,
        partial_over=layout.slice_axes, implementation=cache.implementation, value_dim=value_dim,
    )  # fmt: skip
    partial = _over_replicated(_over_spread(partial, layout.spread_axes), layout.replicated_axes)
    partial = _over_batch(partial, layout.batch_axes)
    out_b1HV = jnp.swapaxes(partial.o / partial.l[..., None], 1, 2).astype(q.dtype)
    return out_b1HV, (k, v)


def _gathered(x_b1HK: jax.Array, layout: KvLayout) -> jax.Array:
    """All-gather new queries, keys and values as the cache's devices need them."""
    if layout.spread_axes:
        x_b1HK = lax.all_gather(x_b1HK, layout.spread_axes, axis=3, tiled=True)
    if layout.batch_axes:
        x_b1HK = lax.all_gather(x_b1HK, layout.batch_axes, axis=0, tiled=True)
    return x_b1HK


def _weigh(partial: Carry, m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rescale outputs and sums as if m were the largest score."""
    weight = jnp.exp(partial.m - finite(m))
    return partial.o * weight[..., None], partial.l * weight


def _over_replicated(partial: Carry, axes: tuple[str, ...]) -> Carry:
    if not axes:
        return partial
    m = lax.pmax(partial.m, axes)
    o, l = lax.psum(_weigh(partial, m), axes)
    return Carry(o, m, l)


def _over_spread(partial: Carry, axes: tuple[str, ...]) -> Carry:
    if not axes:
        return partial
    m = lax.pmax(partial.m, axes)
    o, l = _weigh(partial, m)
    o = lax.psum_scatter(o, axes, scatter_dimension=3, tiled=True)
    return Carry(o, m, lax.psum(l, axes))


def _over_batch(partial: Carry, axes: tuple[str, ...]) -> Carry:
    """Return the softmax of a device's own sequences from all devices' partial ones."""
    if not axes:
        return partial
    shards = lax.axis_size(axes)
    packed = jnp.concatenate([partial.o, partial.m[..., None], partial.l[..., None]], axis=-1)
    packed = packed.reshape(shards, -1, *packed.shape[1:])
    packed = lax.all_to_all(packed, axes, split_axis=0, concat_axis=0, tiled=True)
    partial = Carry(packed[..., :-2], packed[..., -2], packed[..., -1])
    m = partial.m.max(0)
    o, l = _weigh(partial, m[None])
    return Carry(o.sum(0), m, l.sum(0))


def cached_transfers(
    layout: KvLayout, shape: AttentionShape, sizes: Sizes, calls: int
) -> tuple[Transfer, ...]:
    """Return the closed form of what `calls` calls of `cached_attention` send.

    Args:
      layout: the layout of the cache over devices.
      shape: sizes of one call: `batch` sequences outside of attention, `seq_len` slots per
        sequence over all devices, whole head_dim.
      sizes: mesh axis -> size.
      calls: number of calls.
    """
    transfers: list[Transfer] = []
    wide, item = shape.accumulator_bytes, shape.item_bytes

    def add(role: Role, what: str, kind: str, axes: tuple[str, ...], elements: float, each: int):
        size = size_over(sizes, axes)
        if axes and size > 1:
            transfers.append(transfer(role, what, kind, axes, size, elements * each, calls))

    rows = shape.batch
    slices = size_over(sizes, layout.slice_axes) * size_over(sizes, layout.spread_axes)
    new = shape.heads * shape.head_dim + shape.kv_heads * (shape.head_dim + shape.own_values)
    inside = new / size_over(sizes, layout.slice_axes)
    add("new_slices", "slices of queries, keys and values", "all-gather", layout.spread_axes,
        rows * inside, item)  # fmt: skip
    rows *= size_over(sizes, layout.batch_axes)
    add("new_tokens", "queries, keys and values of all sequences", "all-gather",
        layout.batch_axes, rows * inside, item)  # fmt: skip
    held = shape.seq_len // size_over(sizes, layout.slot_axes) + 1
    add("scores", "scores of head slices", "all-reduce", layout.slice_axes,
        rows * shape.heads * held, wide)  # fmt: skip
    values = shape.values / size_over(sizes, layout.slice_axes)
    whole, sums = rows * shape.heads * values, 2 * rows * shape.heads
    add("softmax_merge", "largest score and sum over slots", "all-reduce", layout.spread_axes,
        sums, wide)  # fmt: skip
    add("outputs", "partial outputs to slices", "reduce-scatter", layout.spread_axes, whole, wide)
    out = rows * shape.heads * shape.values / slices
    add("softmax_merge", "partial softmaxes", "all-reduce", layout.replicated_axes,
        out + sums, wide)  # fmt: skip
    add("softmax_merge", "partial softmaxes of all sequences", "all-to-all", layout.batch_axes,
        out + sums, wide)  # fmt: skip
    return tuple(transfers)


def slots_of(tokens: int, devices: int) -> int:
    """Return the slots per device for its share of the tokens."""
    return math.ceil(tokens / devices)
