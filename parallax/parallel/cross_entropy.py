"""The cross-entropy of logits whose vocabulary may be split over mesh axes."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "*b v"], labels: Int[Array, "*b"], vocab_axes: tuple[str, ...] = ()
) -> Float[Array, "*b"]:
    """Return -log softmax(logits)[label] for each token.

    Args:
      logits: [..., V / n], this device's contiguous share of the vocabulary.
      labels: [...], token ids over the whole vocabulary.
      vocab_axes: mesh axes that split the vocabulary, major first; () if it is whole.

    Returns:
      [...] in float32 (float64 for float64 logits), the same on every device of `vocab_axes`.

    Cost: three all-reduces of [...] (a maximum and two sums) if the vocabulary is split.
    """
    wide = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    log_sum, label_logit = softmax_terms(logits.astype(wide), labels, vocab_axes)
    return log_sum - label_logit


def softmax_terms(
    logits: Float[Array, "*b v"], labels: Int[Array, "*b"], vocab_axes: tuple[str, ...]
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Return each token's log(sum(exp(logits))) and its label's logit, as `cross_entropy` does."""
    width = logits.shape[-1]
    top = lax.stop_gradient(logits.max(-1))
    first = 0
    if vocab_axes:
        top = lax.pmax(top, vocab_axes)
        first = lax.axis_index(vocab_axes) * width
    total = jnp.exp(logits - top[..., None]).sum(-1)
    local = labels - first
    here = (local >= 0) & (local < width)
    at = jnp.take_along_axis(logits, jnp.clip(local, 0, width - 1)[..., None], axis=-1)[..., 0]
    label_logit = jnp.where(here, at, jnp.zeros_like(at))
    if vocab_axes:
        total, label_logit = lax.psum((total, label_logit), vocab_axes)
    return jnp.log(total) + top, label_logit


def next_token_labels(
    tokens_BL: Int[Array, "b l"], segment_ids_BL: Int[Array, "b l"] | None
) -> tuple[jax.Array, jax.Array]:
    """Return labels and weights for whole sequences: the next token, if in the same document.

    Args:
      tokens_BL, segment_ids_BL: [B, L]; segment 0 is padding and has weight 0.

    Returns:
      labels [B, L] int32 and weights [B, L] bool.
    """
    labels = jnp.roll(tokens_BL, -1, axis=1)
    weights = jnp.broadcast_to(
        jnp.arange(tokens_BL.shape[1])[None] < tokens_BL.shape[1] - 1, tokens_BL.shape
    )
    if segment_ids_BL is not None:
        weights &= (segment_ids_BL == jnp.roll(segment_ids_BL, -1, axis=1)) & (segment_ids_BL > 0)
    return labels, weights
