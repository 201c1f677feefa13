"""The order of stacked layers over pipeline stages, and their padding for stages of unequal depth.

Every stage holds as many layers as the longest; shorter ones are padded with layers of zeros. A
block of zeros adds nothing to the residual stream, so the function stays the same. A stage
of several chunks holds one after the other: chunk c of stage s is the group c S + s of the layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def pad_layers(x: jax.Array, groups: tuple[int, ...], chunks: int = 1) -> jax.Array:
    """Order and pad layers [N, ...] to [S * max(groups), ...], each stage's own layers first.

    Args:
      x: stacked layers, N = sum(groups).
      groups: layers of each stage.
      chunks: chunks of each stage; with more than 1 all groups are alike.
    """
    if _in_order(groups, chunks):
        return x
    rows = layers_in_place(groups, chunks)
    real = jnp.asarray(rows >= 0).reshape(-1, *(1,) * (x.ndim - 1))
    taken = jnp.take(x, np.maximum(rows, 0), axis=0)
    return jnp.where(real, taken, jnp.zeros_like(taken))


def unpad_layers(x: jax.Array, groups: tuple[int, ...], chunks: int = 1) -> jax.Array:
    """Undo the order and padding of `pad_layers`."""
    return x if _in_order(groups, chunks) else jnp.take(x, _places(groups, chunks), axis=0)


def layers_in_place(groups: tuple[int, ...], chunks: int = 1) -> np.ndarray:
    """Return the layer in each row of `pad_layers`, [S * max(groups)]; -1 is a layer of zeros."""
    rows = np.full(len(groups) * max(groups), -1)
    rows[_places(groups, chunks)] = np.arange(sum(groups))
    return rows


def padded_layers(groups: tuple[int, ...]) -> int:
    """Return the number of layers of zeros over all stages."""
    return len(groups) * max(groups) - sum(groups)


def chunk_rows(x: jax.Array, chunk: jax.Array, chunks: int) -> jax.Array:
    """Return the rows of one chunk of a stage's layers."""
    rows = x.shape[0] // chunks
    return lax.dynamic_slice_in_dim(x, chunk * rows, rows)


def _in_order(groups: tuple[int, ...], chunks: int) -> bool:
    return len(set(groups)) <= 1 and chunks == 1


def _places(groups: tuple[int, ...], chunks: int) -> np.ndarray:
    """Return the row of each layer."""
    longest = max(groups)
    if chunks == 1:
        return np.concatenate([s * longest + np.arange(n) for s, n in enumerate(groups)])
    rows = np.arange(sum(groups)).reshape(len(groups), chunks, -1)
    return rows.swapaxes(0, 1).reshape(-1)
