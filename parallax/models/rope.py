"""Positions: where a token stands, and rotary embeddings of it."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def token_positions(seq_len: int, segment_ids: Int[Array, "b l"] | None) -> Int[Array, "b l"]:
    """Position of each token in its own document, of whole sequences.

    Args:
      seq_len: tokens of a sequence.
      segment_ids: [B, L] of whole sequences, or None for one document a sequence.

    Returns:
      [B, L] int32 ([1, L] without segments).
    """
    index = jnp.arange(seq_len, dtype=jnp.int32)[None]
    if segment_ids is None:
        return index
    index = jnp.broadcast_to(index, segment_ids.shape)
    starts = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    return index - lax.cummax(jnp.where(starts, index, 0), axis=1)


class Rotation(tuple[jax.Array, jax.Array]):
    """cos and sin of the angles, each [B or 1, L, 1, K / 2]."""


def rotation(positions: Int[Array, "b l"], head_dim: int, theta: float, dtype) -> Rotation:
    """Angles of rotary embeddings.

    Args:
      positions: [B, L] or [1, L].
      head_dim: K, even; pair i of K / 2 turns by positions * theta ** (-2 i / K).
      theta: base of the frequencies.
      dtype: of the activations; angles are float32 or wider.
    """
    wide = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
    pairs = jnp.arange(head_dim // 2).astype(wide)
    frequencies = jnp.asarray(theta, wide) ** (pairs * jnp.asarray(-2.0 / head_dim, wide))
    angles = positions.astype(wide)[:, :, None, None] * frequencies[None, None, None]
    return Rotation((jnp.cos(angles), jnp.sin(angles)))


def rotate(x: Float[Array, "b l h k"], angles: Rotation | None) -> Float[Array, "b l h k"]:
    """x with each pair (i, i + K/2) turned by its angle; None leaves x alone.

    Reference: Su et al., "RoFormer", 2021, in the half-split layout of Llama checkpoints.
    """
    if angles is None:
        return x
    cos, sin = angles
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
