"""The positions of tokens, and their rotary embeddings."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from parallax.models.config import RopeScaling
from parallax.parallel.split import UNSPLIT, Split


def token_positions(seq_len: int, segment_ids: Int[Array, "b l"] | None) -> Int[Array, "b l"]:
    """Return the position of each token in its own document, for whole sequences.

    Args:
      seq_len: tokens per sequence.
      segment_ids: [B, L] for whole sequences, or None for one document per sequence.

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
    """The cosines and sines of rotation angles, each [B or 1, L, 1, K / 2]."""


def rotation(
    positions: Int[Array, "b l"],
    head_dim: int,
    theta: float,
    dtype,
    split: Split = UNSPLIT,
    scaling: RopeScaling | None = None,
    rotary_dim: int | None = None,
) -> Rotation:
    """Return the angles of rotary embeddings for this device's pairs of `head_dim`.

    Args:
      positions: [B, L] or [1, L].
      head_dim: the whole K, even; pair i of R / 2 turns by positions * theta ** (-2 i / R).
      theta: base of the frequencies.
      dtype: dtype of the activations; angles are float32 or wider.
      split: if it splits 'head_dim', a device has one slice's pairs.
      scaling: scaling of the frequencies.
      rotary_dim: R, leading elements of a head that turn; None is all.

    Raises:
      ValueError: slices that would split a pair.
    """
    check_whole_pairs(head_dim, split)
    wide = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
    pairs = jnp.arange(head_dim // 2 // split.count("head_dim"), dtype=jnp.int32)
    if axes := split.over("head_dim"):
        pairs = pairs + lax.axis_index(axes) * len(pairs)
    width = head_dim if rotary_dim is None else rotary_dim
    exponents = pairs.astype(wide) * jnp.asarray(-2.0 / width, wide)
    frequencies = jnp.asarray(theta, wide) ** exponents
    factor = 1.0
    if scaling is not None:
        factor = scaling.attention_factor
        if scaling.kind == "yarn":
            frequencies = _yarn(frequencies, pairs.astype(wide), width, theta, scaling)
        else:
            frequencies = _stretched(frequencies, scaling)
    if width < head_dim:
        frequencies = jnp.where(pairs < width // 2, frequencies, 0)
    angles = positions.astype(wide)[:, :, None, None] * frequencies[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if factor == 1.0:
        return Rotation((cos, sin))
    turns = (pairs < width // 2)[None, None, None]
    return Rotation((jnp.where(turns, cos * factor, cos), sin * factor))


def _yarn(
    frequencies: jax.Array, pairs: jax.Array, width: int, theta: float, scaling: RopeScaling
) -> jax.Array:
    def pair_of(turns: float) -> float:
        """Return the (fractional) pair that makes so many turns in the first training's length."""
        length = scaling.original_max_seq_len
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    slow_share = jnp.clip((pairs - first) / max(last - first, 1e-3), 0, 1)
    return (1 - slow_share) * frequencies + slow_share * frequencies / scaling.factor


def _stretched(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = frequencies * (scaling.original_max_seq_len / (2 * math.pi))
    span = scaling.high_freq_factor - scaling.low_freq_factor
    share = jnp.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    return (1 - share) * slow + share * frequencies


def rotate(x: Float[Array, "b l h k"], angles: Rotation | None) -> Float[Array, "b l h k"]:
    """Return x with each pair (2i, 2i + 1) rotated by its angle; None leaves x unchanged.

    A pair's elements are adjacent, so that a slice of head_dim holds whole pairs.

    Reference: Su et al., "RoFormer", 2021; the layout of its equation 34 (half-split checkpoints,
      such as Llama's in Hugging Face's layout, need the columns of q and k permuted).
    """
    if angles is None:
        return x
    cos, sin = angles
    pairs = x.astype(cos.dtype).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def check_whole_pairs(head_dim: int, split: Split) -> None:
    """Raise ValueError if the mesh axes of 'head_dim' would split a pair."""
    slices = split.count("head_dim")
    if head_dim // 2 % slices:
        raise ValueError(
            f"RoPE rotates pairs: head_dim {head_dim} over {slices} devices of mesh axes "
            f"{split.over('head_dim')} gives slices that are not a whole number of pairs. Use a "
            f"head_dim that is a multiple of {2 * slices}, or positions='learned' or 'none'."
        )
