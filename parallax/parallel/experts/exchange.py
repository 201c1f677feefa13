"""The exchange of rows: every device has a block of places for every other, and they swap blocks.

Both exchanges use the same offsets and counts. "dense" sends whole blocks, empty places included;
"ragged" sends only the rows in use. The CPU backend has no ragged exchange: there it is emulated by
the dense one, and `compiled_as` says so. Shapes: P devices in the exchange, C places for each, D
width.
"""
# ruff: noqa: N815 -- fields carry their shapes, as arrays do elsewhere.

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

ExchangeKind = Literal["dense", "ragged"]
Platform = Literal["gpu", "cpu"]
CompiledAs = Literal["dense", "ragged", "ragged, emulated by dense"]


def compiled_as(exchange: ExchangeKind, platform: Platform) -> CompiledAs:
    """Return the exchange that a platform really compiles.

    Raises:
      ValueError: an unknown exchange or platform.
    """
    if exchange not in ("dense", "ragged"):
        raise ValueError(f"unknown exchange {exchange!r}. Use 'dense' or 'ragged'.")
    if platform not in ("gpu", "cpu"):
        raise ValueError(f"unknown platform {platform!r} of an exchange. Use 'gpu' or 'cpu'.")
    if exchange == "dense":
        return "dense"
    return "ragged" if platform == "gpu" else "ragged, emulated by dense"


def exchange_blocks(blocks_nPX: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Send block p of dim 1 to device p, and return the blocks received, block p from device p.

    The array may have any trailing dims. Cost: (P-1)/P of the array leaves a device.
    """
    return lax.all_to_all(blocks_nPX, axes, split_axis=1, concat_axis=1, tiled=True)


class Rows(NamedTuple):
    """The rows of one exchange.

    Attributes:
      rows_PCD: [P, C, D], block p for device p; in each block, rows come first, then zeros.
      sent_P, received_P: [P] int32, the numbers of rows in each sent and each received block.
    """

    rows_PCD: jax.Array
    sent_P: jax.Array
    received_P: jax.Array


def exchange_rows(
    parcels: Sequence[Rows], *, axes: tuple[str, ...], compiled: CompiledAs
) -> list[jax.Array]:
    """Exchange the blocks of rows of several parcels in one collective.

    In programs that run one collective at a time, a single collective overlaps with one loop of
    experts; of two, which run one after the other, only one would.

    Args:
      parcels: rows of equal P and D.
      axes: mesh axes of the exchange, major first.
      compiled: the result of `compiled_as`.

    Returns:
      [P, C, D] for each parcel: block p is from device p, with zeros after its rows.

    Cost: (P-1)/P of the arrays leaves a device; if ragged, the rows for other devices. Backward
      the same, with sent and received swapped.
    """
    places = [p.rows_PCD.shape[1] for p in parcels]
    rows = _concatenate([p.rows_PCD for p in parcels])
    if compiled == "ragged":
        counts = (jnp.stack([getattr(p, name) for p in parcels], axis=1)
                  for name in ("sent_P", "received_P"))  # fmt: skip
        rows = _ragged(axes, tuple(places), rows, *counts)
    else:
        rows = lax.all_to_all(rows, axes, split_axis=0, concat_axis=0, tiled=True)
    starts = [sum(places[:i]) for i in range(len(places))]
    return [rows[:, a : a + c] for a, c in zip(starts, places, strict=True)]


def _concatenate(blocks: list[jax.Array]) -> jax.Array:
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ragged(axes, places, rows_PCD, sent_Pm, received_Pm):
    """Exchange m parcels per device, the j-th in places[j] places of its block."""
    devices, block, width = rows_PCD.shape
    starts_m = jnp.array([sum(places[:j]) for j in range(len(places))], jnp.int32)
    block_P = jnp.arange(devices, dtype=jnp.int32) * block
    starts_Pm = block_P[:, None] + starts_m[None, :]
    # Every device keeps a block for every other one, so the target places are known in advance.
    mine_m = lax.axis_index(axes).astype(jnp.int32) * block + starts_m
    mine_Pm = jnp.zeros_like(starts_Pm) + mine_m[None, :]
    flat = rows_PCD.reshape(-1, width)
    landed = lax.ragged_all_to_all(
        flat, jnp.zeros_like(flat), starts_Pm.reshape(-1), sent_Pm.reshape(-1),
        mine_Pm.reshape(-1), received_Pm.reshape(-1), axis_name=axes,
    )  # fmt: skip
    return landed.reshape(rows_PCD.shape)


def _ragged_forward(axes, places, rows, sent, received):
    return _ragged(axes, places, rows, sent, received), (sent, received)


def _ragged_backward(axes, places, counts, d_rows):
    # Received rows return to their senders: the same exchange with the counts swapped.
    sent, received = counts
    return _ragged(axes, places, d_rows, received, sent), None, None


_ragged.defvjp(_ragged_forward, _ragged_backward)
