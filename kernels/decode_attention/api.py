"""The operation and its dispatch: one query per sequence attends to the slots of its cache.

Shapes: B sequences, N rows of the cache (often B), H query heads, G key/value heads, M slots, K
head_dim, V width of the values (often K), S spans.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from parallax.kernels import dispatch
from parallax.kernels.decode_attention import reference
from parallax.kernels.decode_attention.tiles import kind_of, unsupported
from parallax.kernels.ring_attention import Carry


class NewToken(NamedTuple):
    """The key and value of the query's own token, which are not in the cache yet.

    Attributes:
      k, v: [B, G, K] and [B, G, V]; v is None if the cache's is.
      counts: [] or [B], whether it counts on this device: true on one of those that share the
        slots.
    """

    k: Float[Array, "b g k"]
    v: Float[Array, "b g v"] | None
    counts: Bool[Array, "..."]


def decode_attention(
    q: Float[Array, "b h k"],
    k: Float[Array, "n g m k"],
    v: Float[Array, "n g m v"] | None,
    *,
    scale: float,
    kv_length: Int[Array, "..."] | int | None = None,
    kv_spans: Int[Array, "b s 2"] | None = None,
    kv_mask: Bool[Array, "b m"] | None = None,
    kv_rows: Int[Array, " b"] | None = None,
    new: NewToken | None = None,
    sinks: Float[Array, " h"] | None = None,
    window: int | None = None,
    cap: float | None = None,
    partial_over: str | Sequence[str] = (),
    implementation: str | None = None,
    value_dim: int | None = None,
) -> Carry:
    """Attend from one query per sequence to the slots that hold its tokens.

    At most one of kv_length, kv_spans and kv_mask says which slots count; without any, all do.

    Args:
      q, k, v: [B, H, K], [N, G, M, K] and [N, G, M, V]; G divides H. Slots that do not count must
        be finite. If v is None, the values are the first V = `value_dim` elements of the keys,
        which are read in place.
      scale: factor of the scores.
      kv_length: [] or [B]; that many first slots count.
      kv_spans: [B, S, 2] int32; slots start <= i < end of each (start, end) count. Spans of a
        sequence do not overlap; empty ones cost nothing.
      kv_mask: [B, M]; slots where it is True count.
      kv_rows: [B]; the row of k and v, of N, that each sequence uses. None: its own, N = B.
      new: one more key and value, beside the cache.
      sinks: [H]; one more score for each head, without a value; -inf on all but one of the devices
        that share the slots.
      window: no sequence counts more slots than this: a kernel is cut for so many, and its cost
        declared. None: M. Which slots these are, the arguments above say.
      cap: scores s become cap * tanh(s / cap), before the mask.
      partial_over: mesh axes whose devices hold slices of K and V: scores are summed over them, in
        the accumulator's dtype, before use.
      implementation: "xla", which supports all of this; "mosaic", a kernel for Hopper GPUs: float16
        and bfloat16, head_dim 64, 128, 256 or 512, M a multiple of 8, no kv_mask, cap or
        partial_over, and v given; or None, the fastest that supports the call and is validated
        (`dispatch.choose`).
      value_dim: V, if v is None.

    Returns:
      The partial softmax of one query token, in the form of `ring_attention`'s steps: unnormalised
      o [B, H, 1, V], m and l [B, H, 1], in float32 (float64 for float64). `merge` combines those of
      several caches, `ring_attention.finish` normalises. Where nothing counts, m is -inf, o and l
      are 0.

    Raises:
      NotImplementedError: the implementation does not support this; the message names one that
        does. Also a gradient through "mosaic", which is for decoding.
      ValueError: more than one of kv_length, kv_spans and kv_mask; a window below 1.

    Cost: 2 B H M (K + V) FLOPs; reads B G M (K + V) elements ("mosaic": of the slots that count).
      With partial_over an all-reduce of B H M elements, M + 1 with `new`.
    Reference: partial softmaxes as in Milakov and Gimelshein, 2018; splits of the keys as in Dao et
      al., "Flash-Decoding", 2023.
    """
    if sum(x is not None for x in (kv_length, kv_spans, kv_mask)) > 1:
        raise ValueError(
            "decode_attention: kv_length, kv_spans and kv_mask all say which slots count. "
            "Pass one of them."
        )
    if window is not None and window < 1:
        raise ValueError(f"decode_attention: window={window} slots. Give 1 or more, or None.")
    axes = (partial_over,) if isinstance(partial_over, str) else tuple(partial_over)
    reasons = {
        "mosaic": unsupported(q, k, v, scale, cap, kv_mask is not None, axes),
        "cudnn": "it rounds its output to the inputs' dtype, and partial softmaxes are float32",
        "xla": None,
    }
    chosen = dispatch.choose("decode_attention", implementation, reasons, kind=kind_of(q))
    if kv_length is not None or (kv_spans is None and chosen == "mosaic"):
        end = jnp.asarray(k.shape[2] if kv_length is None else kv_length, jnp.int32)
        end = jnp.broadcast_to(end, q.shape[:1])
        kv_spans = jnp.stack([jnp.zeros_like(end), end], axis=-1)[:, None]
    if chosen == "mosaic":
        # Imported late: the kernel language takes a while to load.
        from parallax.kernels.decode_attention import mosaic

        carry = Carry(*mosaic.attend(q, k, v, kv_spans, kv_rows, scale=scale, window=window))
        if new is not None:
            assert new.v is not None, "the kernel has values of their own"
            counts = jnp.broadcast_to(jnp.reshape(new.counts, (-1, 1)), (q.shape[0], 1))
            # With as many heads as the query, XLA launches no products.
            k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (new.k, new.v))
            k, v = k[:, :, None], v[:, :, None]
            alone = reference.attend(q, k, v, counts, None, scale=scale, partial_over=())
            carry = merge(carry, Carry(*alone))
    else:
        if kv_rows is not None:
            k, v = k[kv_rows], None if v is None else v[kv_rows]
        seen = kv_mask if kv_spans is None else reference.seen(kv_spans, k.shape[2])
        carry = Carry(
            *reference.attend(
                q, k, v, seen, new, scale=scale, partial_over=axes, cap=cap, value_dim=value_dim
            )
        )
    if sinks is None:
        return carry
    m = jnp.broadcast_to(sinks.astype(carry.m.dtype)[None, :, None], carry.m.shape)
    return merge(carry, Carry(jnp.zeros_like(carry.o), m, jnp.ones_like(carry.l)))


def merge(*carries: Carry) -> Carry:
    """Merge partial softmaxes of the same queries over different keys into one over all keys."""
    m = functools.reduce(jnp.maximum, (c.m for c in carries))
    weights = [jnp.exp(c.m - reference.finite(m)) for c in carries]
    o = sum(c.o * w[..., None] for c, w in zip(carries, weights, strict=True))
    l = sum(c.l * w for c, w in zip(carries, weights, strict=True))
    return Carry(jnp.asarray(o), m, jnp.asarray(l))
