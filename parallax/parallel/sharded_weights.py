"""Weights sharded over devices that use them for different tokens: gathered where they are used.

The logical axis `embed` names the dim of a weight that is sharded so.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

# When sharded weights are gathered: by each layer where it uses them, or all of them once a step.
Gather = Literal["layer", "step"]
# The logical axis of a dim, several that split it in turn, or None.
Name = str | tuple[str, ...] | None
AxisTable = Mapping[str, tuple[str, ...]]  # logical axis -> mesh axes


def names_of(name: Name) -> tuple[str, ...]:
    """Return the logical axes that split one dim, in turn."""
    return () if name is None else (name,) if isinstance(name, str) else name


def embed_dim(names: Sequence[Name]) -> int | None:
    """Return the dim that `embed` splits in an array with these logical axes; None without one."""
    return next((dim for dim, name in enumerate(names) if "embed" in names_of(name)), None)


def embed_axes(names: Sequence[Name], table: AxisTable) -> tuple[str, ...]:
    """Return the mesh axes of `embed` in one array: those that split no other dim of it."""
    if embed_dim(names) is None:
        return ()
    flat = [n for name in names for n in names_of(name)]
    taken = {axis for n in flat if n != "embed" for axis in table.get(n, ())}
    return tuple(axis for axis in table.get("embed", ()) if axis not in taken)


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
    for differ, run in itertools.groupby(reversed(axes), lambda axis: axis in tokens):
        over = tuple(reversed(list(run)))
        to: Literal["varying", "invarying"] = "varying" if differ else "invarying"
        x = lax.all_gather(x, over, axis=dim, tiled=True, to=to)
    return x


def exchange_rows(
    table_VD: jax.Array, ids_BL: jax.Array, axes: tuple[str, ...], tokens: tuple[str, ...]
) -> jax.Array:
    """Look up rows of a table whose width is split over devices, at full width.

    Over `tokens`, devices that look up rows of their own, each looks up its share of the width for
    all of them, and the shares travel to whoever asked; the table stays where it is.

    Args:
      table_VD: [V, D / n], this device's share of the width.
      ids_BL: [B, L], this device's rows.
      axes: the mesh axes that split the width, major first.
      tokens: mesh axes whose devices have different ids.

    Returns:
      [B, L, D].

    Cost: over `tokens`, an all-gather of ids [B, L] and an all-to-all of as many bytes as the
      result has; over other axes, an all-gather of the result. Backward the all-to-all again.
    """
    first = next((i for i, axis in enumerate(axes) if axis in tokens), len(axes))
    last = next((i for i in range(len(axes), 0, -1) if axes[i - 1] in tokens), first)
    over = axes[first:last]
    if not set(over) <= set(tokens):
        raise ValueError(
            f"a table's width is split over mesh axes {axes}, and tokens over {tokens}: the axes "
            "that split both have to be neighbours."
        )
    if not over:
        return gather_shards(jnp.take(table_VD, ids_BL, axis=0), axes, 2, tokens)
    rows = jnp.take(table_VD, lax.all_gather(ids_BL, over), axis=0)
    rows = gather_shards(rows, axes[last:], 3, tokens)
    rows = lax.all_to_all(rows, over, split_axis=0, concat_axis=3, tiled=True)[0]
    return gather_shards(rows, axes[:first], 2, tokens)
