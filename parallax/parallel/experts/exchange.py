"""Rows between devices: each has a block of places for every other, and they swap blocks.

The same offsets and counts drive both exchanges. "dense" sends whole blocks, empty places included;
"ragged" sends the rows that are there. The CPU backend has no ragged exchange: there it is emulated
by the dense one, and `compiled_as` says so.
Shapes: P devices of the exchange, C places for each, D width.
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


class Rows(NamedTuple):
    """Rows that travel.

    Attributes:
      rows_PCD: [P, C, D], block p for device p; in each the rows come first, then zeros.
      sent_P, received_P: [P] int32, how many rows are in each block that goes, that comes.
    """

    rows_PCD: jax.Array
    sent_P: jax.Array
    received_P: jax.Array


def exchange_rows(
    parcels: Sequence[Rows], *, axes: tuple[str, ...], compiled: CompiledAs
) -> list[jax.Array]:
    """Swaps blocks of rows of several purposes, in one collective.

    One, so that a compiler that runs one collective at a time has all of them beside one loop of
    experts; two would come one after the other, and only one of them have work beside it.

    Args:
      parcels: of equal P and D.
      axes: mesh axes of the exchange, major first.
      compiled: of `compiled_as`.

    Returns:
      For each parcel [P, C, D]: block p came from device p, zeros after its rows.

    Cost: (P-1)/P of the arrays leaves a device; ragged: their rows for others. Backward the same,
      with sent and received exchanged.
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
    """m parcels for each device, the j-th in places[j] places of its block."""
    devices, block, width = rows_PCD.shape
    starts_m = jnp.array([sum(places[:j]) for j in range(len(places))], jnp.int32)
    block_P = jnp.arange(devices, dtype=jnp.int32) * block
    starts_Pm = block_P[:, None] + starts_m[None, :]
    # Every device keeps a block for every other one, so where rows land is known beforehand.
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
    # What came goes back to where it came from: the same exchange, its counts exchanged.
    sent, received = counts
    return _ragged(axes, places, d_rows, received, sent), None, None


_ragged.defvjp(_ragged_forward, _ragged_backward)
