"""The operation and its dispatch: a step takes and returns the unnormalised (o, m, l).

Shapes: B batch, L query tokens, M key tokens, H query heads, G key/value heads, K head_dim,
V width of the values (often K).
"""

from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from parallax.kernels import dispatch
from parallax.kernels.ring_attention import reference
from parallax.kernels.ring_attention.mask import Mask
from parallax.kernels.ring_attention.tiles import kind_of, unsupported
from parallax.kernels.validation import PLAIN, Kind


class Carry(NamedTuple):
    """The unnormalised attention over the keys seen so far, float32 (float64 for float64 inputs).

    Attributes:
      o: [B, H, L, V], sum over seen keys of exp(score - m) * v.
      m: [B, H, L], largest score seen; -inf where no key was seen.
      l: [B, H, L], sum over seen keys of exp(score - m).
    """

    o: Float[Array, "b h l v"]
    m: Float[Array, "b h l"]
    l: Float[Array, "b h l"]


def empty_carry(
    q: Float[Array, "b l h k"], value_dim: int | None = None, sinks: jax.Array | None = None
) -> Carry:
    """Return the carry before any key was seen, for values of width `value_dim` (None: that of q).

    It varies over the same mesh axes as q. With `sinks` [H], the scores of a key without a value,
    that key was seen.
    """
    zeros = jnp.swapaxes(q, 1, 2)[..., :1].astype(reference.accumulator_dtype(q.dtype)) * 0
    rows = zeros[..., 0]
    width = q.shape[-1] if value_dim is None else value_dim
    o = jnp.broadcast_to(zeros, (*rows.shape, width))
    if sinks is None:
        return Carry(o, rows - jnp.inf, rows)
    return Carry(o, rows + sinks.astype(rows.dtype)[None, :, None], rows + 1)


def finish(carry: Carry, dtype) -> tuple[Float[Array, "b l h v"], Float[Array, "b h l"]]:
    """Return the normalised output [B, L, H, V] in `dtype`, and the log-sum-exp [B, H, L]."""
    l_safe = jnp.where(carry.l == 0, 1, carry.l)
    out = jnp.swapaxes(carry.o / l_safe[..., None], 1, 2).astype(dtype)
    return out, carry.m + jnp.log(l_safe)


@overload
def attention_step(
    q, k, v, carry: Carry | None, *, is_causal: bool, scale: float, sinks: Any = None,
    last: Literal[False] = False, q_segment_ids: Any = None, kv_segment_ids: Any = None,
    kv_length: Any = None, window: int | None = None, offset: Any = 0, cap: float | None = None,
    partial_over: str | None = None, implementation: str | None = None,
) -> Carry: ...  # fmt: skip


@overload
def attention_step(
    q, k, v, carry: Carry | None, *, is_causal: bool, scale: float, sinks: Any = None,
    last: Literal[True], q_segment_ids: Any = None, kv_segment_ids: Any = None,
    kv_length: Any = None, window: int | None = None, offset: Any = 0, cap: float | None = None,
    partial_over: str | None = None, implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]: ...  # fmt: skip


def attention_step(
    q: Float[Array, "b l h k"],
    k: Float[Array, "b m g k"],
    v: Float[Array, "b m g v"],
    carry: Carry | None,
    *,
    is_causal: bool,
    scale: float,
    sinks: Float[Array, " h"] | None = None,
    last: bool = False,
    q_segment_ids: Int[Array, "b l"] | None = None,
    kv_segment_ids: Int[Array, "b m"] | None = None,
    kv_length: Int[Array, ""] | None = None,
    window: int | None = None,
    offset: int | Int[Array, ""] = 0,
    cap: float | None = None,
    partial_over: str | None = None,
    implementation: str | None = None,
) -> Carry | tuple[jax.Array, jax.Array]:
    """Attend from q to one more block of keys and fold the result into `carry`.

    Args:
      q, k, v: [B, L, H, K], [B, M, G, K] and [B, M, G, V]; G divides H.
      carry: result of earlier blocks; None before the first, when nothing is read.
      is_causal: key j is visible to query i where j <= i, counted within this block pair.
      scale: factor of the scores.
      sinks: [H], every head's score of one more key, which has no value; without a carry only.
      last: return the normalised output, as `finish` does, instead of a carry.
      q_segment_ids, kv_segment_ids: [B, L], [B, M]; tokens of different ids do not see each other.
      kv_length: scalar; only the first kv_length keys count, others may hold anything, even NaN.
        Keys and values that another mask hides must be finite: they are multiplied by 0.
      window: instead of is_causal: key j is visible to query i where 0 <= offset + i - j < window.
      offset: the position of query 0 minus that of key 0, with a window.
      cap: scores s become cap * tanh(s / cap), before the mask.
      partial_over: mesh axis whose devices hold slices of K and V: a block's partial scores are
        summed over it, in the accumulator's dtype, before use.
      implementation: "xla", which supports all of this; "mosaic", a kernel for Hopper GPUs: float16
        and bfloat16, head_dim 64, 128, 256 or 512, no cap or partial_over; or None, the fastest
        that supports the call and is validated (`dispatch.choose`).

    Returns:
      The new `Carry`, with the same shapes; or with `last` the output [B, L, H, V] in q's dtype,
      and the log-sum-exp [B, H, L].

    Raises:
      ValueError: sinks and a carry, which has them already; segment ids of one side alone.
      NotImplementedError: the implementation does not support this; the message names one that
        does. Also a gradient through "mosaic": `parallax.parallel.ring_attention` has one.

    Cost: 2 B H L M (K + V) FLOPs (about half when is_causal and L is long: masked blocks are
      skipped). "mosaic" also skips blocks of keys outside the range that may share a segment with
      some queries (`mask.shared_blocks`): D equal documents one after another, much longer than a
      block, cost about 1 / D. With kv_length a copy of k and v; with partial_over an all-reduce of
      B H `score_elements(L, M, is_causal)` elements.
    Reference: online softmax (Milakov and Gimelshein, 2018), in FlashAttention's block form.
    """
    if sinks is not None and carry is not None:
        raise ValueError("attention_step: sinks come in with the first keys, and carry has some.")
    mask = _mask(is_causal, q_segment_ids, kv_segment_ids, kv_length, window, offset)
    k, v = _counted(k, v, kv_length)
    reason = unsupported(q, k, v, scale, partial_over, cap=cap)
    kind = kind_of(q, is_causal, is_whole=carry is None and last and not mask.has_segments)
    if _takes_kernel("attention_step", implementation, reason, kind):
        # Imported late: the kernel language takes a while to load.
        from parallax.kernels.ring_attention import mosaic

        made = mosaic.step(q, k, v, carry, mask=mask, scale=scale, sinks=sinks, last=last)
        return made if last else Carry(*made)
    carry = empty_carry(q, v.shape[-1], sinks) if carry is None else carry
    options = {"mask": mask, "scale": scale, "partial_over": partial_over, "cap": cap}
    new = Carry(*reference.step(q, k, v, *carry, **options))
    return finish(new, q.dtype) if last else new


def attention_step_backward(
    q: Float[Array, "b l h k"],
    k: Float[Array, "b m g k"],
    v: Float[Array, "b m g v"],
    d_out: Float[Array, "b l h v"],
    lse: Float[Array, "b h l"],
    delta: Float[Array, "b h l"],
    *,
    is_causal: bool,
    scale: float,
    q_segment_ids: Int[Array, "b l"] | None = None,
    kv_segment_ids: Int[Array, "b m"] | None = None,
    kv_length: Int[Array, ""] | None = None,
    window: int | None = None,
    offset: int | Int[Array, ""] = 0,
    cap: float | None = None,
    partial_over: str | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the contribution of one block pair to the gradients, from the final log-sum-exp.

    Args:
      d_out: [B, L, H, V], gradient of the normalised output.
      lse: [B, H, L], log-sum-exp of the whole attention (`finish`), sinks included.
      delta: [B, H, L], sum over V (of all slices, with partial_over) of out * d_out.
      Others as in `attention_step`; "mosaic" needs d_out in the dtype of q.

    Returns:
      dq [B, L, H, K], dk [B, M, G, K] and dv [B, M, G, V], in float32 (float64 for float64).

    Raises:
      ValueError: segment ids of one side alone.
      NotImplementedError: the implementation does not support this; the message names one that
        does.

    Cost: B H L M (6 K + 4 V) FLOPs, masked blocks skipped, and by "mosaic" those of other segments;
      each of its kernels recomputes scores: 14 K, and 18 K for heads of 512. With partial_over two
      all-reduces as large as the forward step's: of the scores again, and of their gradients.
    """
    mask = _mask(is_causal, q_segment_ids, kv_segment_ids, kv_length, window, offset)
    k, v = _counted(k, v, kv_length)
    reason = unsupported(q, k, v, scale, partial_over, d_out, cap=cap)
    kind = kind_of(q, is_causal)._replace(cut=PLAIN)  # cuts are of the forward step only
    if _takes_kernel("attention_step_backward", implementation, reason, kind):
        from parallax.kernels.ring_attention import mosaic

        return mosaic.step_backward(q, k, v, d_out, lse, delta, mask=mask, scale=scale)
    return reference.step_backward(
        q, k, v, d_out, lse, delta, mask=mask, scale=scale, partial_over=partial_over, cap=cap
    )


def _mask(is_causal, q_segment_ids, kv_segment_ids, kv_length, window, offset) -> Mask:
    if (q_segment_ids is None) != (kv_segment_ids is None):
        given, lacking = ("q", "kv") if kv_segment_ids is None else ("kv", "q")
        raise ValueError(
            f"attention_step: {given}_segment_ids came without {lacking}_segment_ids, and would "
            "hide nothing. Give both, or none."
        )
    return Mask(is_causal, q_segment_ids, kv_segment_ids, kv_length, window, offset)


def _takes_kernel(name: str, implementation: str | None, reason: str | None, kind: Kind) -> bool:
    """Return whether the Mosaic kernel runs, which `reason` may rule out."""
    no_step = "it neither takes nor returns the (o, m, l) of a step"
    reasons = {"mosaic": reason, "cudnn": no_step, "xla": None}
    return dispatch.choose(name, implementation, reasons, kind=kind) == "mosaic"


def _counted(k, v, kv_length) -> tuple[jax.Array, jax.Array]:
    """Set keys and values that do not count to 0: 0 times a NaN would be NaN."""
    if kv_length is None:
        return k, v
    counts = jnp.arange(k.shape[1], dtype=jnp.int32)[:, None, None] < kv_length
    return jnp.where(counts, k, jnp.zeros_like(k)), jnp.where(counts, v, jnp.zeros_like(v))
