"""Weights sharded over devices that use them for different tokens: gathered where they are used.

The logical axis `embed` names the dim of a weight that is sharded so.
"""

import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.varying import vary_over

# When sharded weights are gathered: by each layer where it uses them, or all of them once a step.
Gather = Literal["layer", "step"]


def gather_shards(
    x: jax.Array, axes: tuple[str, ...], dim: int, tokens: tuple[str, ...]
) -> jax.Array:
    """All-gather a dim that mesh axes split, major first.

    Args:
      x: a local shard.
      axes: the mesh axes.
      dim: the dim they split.
      tokens: mesh axes whose devices have different tokens.

    Cost: an all-gather; backward a reduce-scatter over those of `tokens`, and nothing over others.
    """
    for over in gather_steps(axes, tokens):
        to: Literal["varying", "invarying"] = "varying" if over[0] in tokens else "invarying"
        x = lax.all_gather(x, over, axis=dim, tiled=True, to=to)
    return x


def gather_steps(axes: tuple[str, ...], tokens: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the mesh axes of each all-gather of `gather_shards`, minor axes first."""
    runs = itertools.groupby(reversed(axes), lambda axis: axis in tokens)
    return [tuple(reversed(list(run))) for _, run in runs]


class RowPath(NamedTuple):
    """The mesh axes that split a table's width, major first, by how rows cross them.

    Attributes:
      last, first: over these, minor and major to the others, rows are gathered by all devices.
      exchanged: over these, devices look up rows of their own.
    """

    first: tuple[str, ...]
    exchanged: tuple[str, ...]
    last: tuple[str, ...]


def row_path(axes: tuple[str, ...], tokens: tuple[str, ...]) -> RowPath:
    """Return how looked-up rows travel; `tokens` are mesh axes whose devices have different ids.

    Raises:
      ValueError: an axis of the others between those of `tokens`.
    """
    own = [i for i, axis in enumerate(axes) if axis in tokens] or [len(axes)]
    path = RowPath(axes[: own[0]], axes[own[0] : own[-1] + 1], axes[own[-1] + 1 :])
    if not set(path.exchanged) <= set(tokens):
        raise ValueError(
            f"a table's width is split over mesh axes {axes}, and tokens over {tokens}: the axes "
            "that split both have to be neighbours."
        )
    return path


def exchange_rows(table_VD: jax.Array, ids_BL: jax.Array, path: RowPath, dtype: str) -> jax.Array:
    """Look up rows of a table whose width is split over devices, at full width.

    Each device looks up its share of the width for all devices with rows of their own, and the
    shares travel to whoever asked; the table stays where it is.

    Args:
      table_VD: [V, D / n], this device's share of the width.
      ids_BL: [B, L], this device's rows.
      path: the mesh axes that split the width.
      dtype: dtype in which rows travel.

    Returns:
      [B, L, D].

    Cost: over `path.exchanged`, an all-gather of ids [B, L] int32 and an all-to-all of as many
      bytes as the result has; over others, an all-gather. Backward the all-to-all again.
    """
    first, over, last = path
    if over:
        ids_BL = lax.all_gather(vary_over(ids_BL, over), over)
    rows = jnp.take(table_VD, ids_BL, axis=0)
    if any(path):
        rows = rows.astype(dtype)
    rows = gather_shards(rows, last, rows.ndim - 1, over)
    if over:
        rows = lax.all_to_all(rows, over, split_axis=0, concat_axis=3, tiled=True)[0]
    return gather_shards(rows, first, 2, over)
