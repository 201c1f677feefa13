"""The padding of stacked layers for pipeline stages of unequal depth.

Every stage holds as many layers as the longest; shorter ones are padded with layers of zeros. A
pre-norm block of zeros adds nothing to the residual stream, so the function stays the same.
"""

import jax
import jax.numpy as jnp
import numpy as np


def pad_layers(x: jax.Array, groups: tuple[int, ...]) -> jax.Array:
    """Pad layers [N, ...] to [S * max(groups), ...], each stage's own groups[s] layers first.

    Args:
      x: stacked layers, N = sum(groups).
      groups: layers of each stage.
    """
    if len(set(groups)) <= 1:
        return x
    rows = layers_in_place(groups)
    real = jnp.asarray(rows >= 0).reshape(-1, *(1,) * (x.ndim - 1))
    taken = jnp.take(x, np.maximum(rows, 0), axis=0)
    return jnp.where(real, taken, jnp.zeros_like(taken))


def unpad_layers(x: jax.Array, groups: tuple[int, ...]) -> jax.Array:
    """Remove the layers of zeros: inverse of `pad_layers`."""
    return x if len(set(groups)) <= 1 else jnp.take(x, _places(groups), axis=0)


def layers_in_place(groups: tuple[int, ...]) -> np.ndarray:
    """Return the layer in each row of padded layers, [S * max(groups)]; -1 is a layer of zeros."""
    rows = np.full(len(groups) * max(groups), -1)
    rows[_places(groups)] = np.arange(sum(groups))
    return rows


def padded_layers(groups: tuple[int, ...]) -> int:
    """Return the number of layers of zeros over all stages."""
    return len(groups) * max(groups) - sum(groups)


def _places(groups: tuple[int, ...]) -> np.ndarray:
    longest = max(groups)
    return np.concatenate([s * longest + np.arange(n) for s, n in enumerate(groups)])
