"""The operation in plain XLA, which holds all scores of a sequence at once.

Shapes: B sequences, G key/value heads, R query heads of each, C slots, K head_dim, V width of the
values.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from parallax.kernels.ring_attention.reference import accumulator_dtype, capped


def attend(
    q, k, v, seen, new, *, scale: float, partial_over: tuple[str, ...], cap: float | None = None,
    value_dim: int | None = None,
):  # fmt: skip
    """Compute `api.decode_attention`; return (o, m, l). `seen` [B, C] or None is the mask.

    Values that are elements of the keys are multiplied with all of the keys, since XLA would copy
    those elements for a product of their own.
    """
    wide = accumulator_dtype(q.dtype)
    batch, heads, width = q.shape
    q_BGRK = q.reshape(batch, k.shape[1], -1, width)
    # Without this, XLA would transpose the cache of all layers first.
    keys = with_layout_constraint(k, Layout((0, 1, 2, 3)))
    values = keys if v is None else with_layout_constraint(v, Layout((0, 1, 2, 3)))
    scores_BGRC = _scores(q_BGRK, keys, wide)
    if new is not None:
        own = _scores(q_BGRK, new.k[:, :, None], wide)
        scores_BGRC = jnp.concatenate([scores_BGRC, own], axis=-1)
        seen = jnp.ones((batch, k.shape[2]), bool) if seen is None else seen
        counts = jnp.broadcast_to(jnp.reshape(new.counts, (-1, 1)), (batch, 1))
        seen = jnp.concatenate([seen, counts], axis=1)
    if partial_over:
        scores_BGRC = lax.psum(scores_BGRC, partial_over)
    scores_BGRC = capped(scores_BGRC * jnp.asarray(scale, wide), cap)
    if seen is not None:
        scores_BGRC = jnp.where(seen[:, None, None], scores_BGRC, -jnp.inf)

    m_BGR = scores_BGRC.max(-1)
    p_BGRC = jnp.exp(scores_BGRC - finite(m_BGR)[..., None])
    l_BGR = p_BGRC.sum(-1)
    p_BGRC = p_BGRC.astype(q.dtype)
    o_BGRV = _outputs(p_BGRC[..., : k.shape[2]], values, wide)
    if new is not None:
        own = new.k if v is None else new.v
        o_BGRV = o_BGRV + _outputs(p_BGRC[..., -1:], own[:, :, None], wide)
    o_BH1V = o_BGRV.reshape(batch, heads, 1, -1)[..., : value_dim if v is None else None]
    return o_BH1V, m_BGR.reshape(batch, heads, 1), l_BGR.reshape(batch, heads, 1)


def seen(spans, slots: int) -> jax.Array:
    """Return a mask [B, C] of the slots that count."""
    start, end = spans[..., :1], spans[..., 1:]
    numbers = jnp.arange(slots, dtype=jnp.int32)[None, None]
    return ((numbers >= start) & (numbers < end)).any(1)


def finite(m: jax.Array) -> jax.Array:
    """Replace the m = -inf of a device without a sequence's tokens by 0, to avoid inf - inf."""
    return jnp.where(jnp.isneginf(m), 0, m)


def _scores(q_BGRK, k_BGCK, wide):
    """Compute Q K^T, [B, G, R, C].

    With one query per key head, XLA turns the product into multiply and reduce anyway, in an order
    for which it first transposes the cache of all layers; so it is written that way here.
    """
    if q_BGRK.shape[2] > 1:
        return jnp.einsum("bgrk,bgck->bgrc", q_BGRK, k_BGCK, preferred_element_type=wide)
    return (q_BGRK.astype(wide) * k_BGCK.astype(wide)).sum(-1)[:, :, None]


def _outputs(p_BGRC, v_BGCV, wide):
    """Compute P V, [B, G, R, V]."""
    if p_BGRC.shape[2] > 1:
        return jnp.einsum("bgrc,bgcv->bgrv", p_BGRC, v_BGCV, preferred_element_type=wide)
    p_BGC1 = jnp.swapaxes(p_BGRC, 2, 3).astype(wide)
    return (p_BGC1 * v_BGCV.astype(wide)).sum(2)[:, :, None]
