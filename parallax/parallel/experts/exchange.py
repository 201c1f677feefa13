"""Rows between devices: each has a block of places for every other, and they swap blocks.

The same offsets and counts drive both exchanges. "dense" sends whole blocks, empty places included;
"ragged" sends the rows that are there. The CPU backend has no ragged exchange: there it is emulated
by the dense one, and `compiled_as` says so.
Shapes: P devices of the exchange, C places for each, D width.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

ExchangeKind = Literal["dense", "ragged"]
Platform = Literal["gpu", "cpu"]
CompiledAs = Literal["dense", "ragged", "ragged, emulated by dense"]


def compiled_as(exchange: ExchangeKind, platform: Platform) -> CompiledAs:
    """What an exchange really is on a platform.

    Raises:
      ValueError: an exchange or platform that does not exist.
    """
    if exchange not in ("dense", "ragged"):
        raise ValueError(f"unknown exchange {exchange!r}. Use 'dense' or 'ragged'.")
    if platform not in ("gpu", "cpu"):
        raise ValueError(f"unknown platform {platform!r} of an exchange. Use 'gpu' or 'cpu'.")
    if exchange == "dense":
        return "dense"
    return "ragged" if platform == "gpu" else "ragged, emulated by dense"


def exchange_blocks(blocks_nPX: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Block p of dim 1 goes to device p; block p of the result came from it. Any trailing dims.

    Cost: (P-1)/P of the array leaves a device.
    """
    return lax.all_to_all(blocks_nPX, axes, split_axis=1, concat_axis=1, tiled=True)


def exchange_rows(
    rows_PCD: jax.Array,
    sent_P: jax.Array,
    received_P: jax.Array,
    *,
    axes: tuple[str, ...],
    compiled: CompiledAs,
) -> jax.Array:
    """Swaps blocks of rows: block p goes to device p and block p of the result came from it.

    Args:
      rows_PCD: [P, C, D]; in each block the rows come first, then zeros.
      sent_P, received_P: [P] int32, how many rows are in each block that goes, that comes.
      axes: mesh axes of the exchange, major first.
      compiled: of `compiled_as`.

    Returns:
      [P, C, D], zeros after the rows.

    Cost: (P-1)/P of the array leaves a device; ragged: its rows for others. Backward the same, with
      sent and received exchanged.
    """
    if compiled == "ragged":
        return _ragged(axes, rows_PCD, sent_P, received_P)
    return lax.all_to_all(rows_PCD, axes, split_axis=0, concat_axis=0, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ragged(axes, rows_PCD, sent_P, received_P):
    devices, places, width = rows_PCD.shape
    starts = jnp.arange(devices, dtype=jnp.int32) * places
    # Every device has room for C rows of every other one, so where rows land is known beforehand.
    mine = jnp.zeros(devices, jnp.int32) + lax.axis_index(axes).astype(jnp.int32) * places
    flat = rows_PCD.reshape(-1, width)
    landed = lax.ragged_all_to_all(
        flat, jnp.zeros_like(flat), starts, sent_P, mine, received_P, axis_name=axes
    )
    return landed.reshape(rows_PCD.shape)


# What came back to where it came from: the same exchange with its two counts exchanged.
_ragged.defvjp(
    lambda axes, rows, sent, received: (_ragged(axes, rows, sent, received), (sent, received)),
    lambda axes, counts, d_rows: (_ragged(axes, d_rows, counts[1], counts[0]), None, None),
)
