"""The unsharded model that verify compares with: attention as in the textbook."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from parallax.models.transformer import Transformer
from parallax.parallel.attention_parts import Local
from parallax.parallel.split import Split


@dataclass(frozen=True)
class Plain(Local):
    """softmax(Q K^T / sqrt(K)) V with all scores at once, in float32 or wider."""

    def attend(self, q, k, v, *, is_causal, segment_ids, partial_over=None):
        assert partial_over is None, "the textbook has whole heads"
        wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
        repeats = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
        scores = jnp.einsum("blhk,bmhk->bhlm", q, k, preferred_element_type=wide)
        seen = jnp.ones((1, 1, q.shape[1], k.shape[1]), bool)
        if is_causal:
            seen = jnp.tril(seen[0, 0])[None, None]
        if segment_ids is not None:
            seen = seen & (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
        scores = jnp.where(seen, scores * q.shape[-1] ** -0.5, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bhlm,bmhk->blhk", weights, v, preferred_element_type=wide).astype(
            q.dtype
        )


def reference_logits(model: Transformer, tokens_BL: jax.Array, segment_ids_BL=None) -> jax.Array:
    """[B, L, V] of the model on one device."""
    return model(tokens_BL, segment_ids_BL, Split(attention=Plain()))
