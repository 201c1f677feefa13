"""The mapping from choices to places: the device and buffer row that each choice travels in.

Every exchange uses the same offsets: a device has C places per destination, filled from the first
on and sorted by expert. Rows move by gathers only, forward and backward. Shapes: T tokens, k
choices, D width, P destinations with e experts each, C places for each.
"""
# ruff: noqa: N815 -- fields carry their shapes, as arrays do elsewhere.

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from parallax.kernels.ring_attention.reference import accumulator_dtype


class Capacity(NamedTuple):
    """The number of places in a buffer.

    Attributes:
      rows: C, places per destination.
      per_expert: the most choices that an expert takes from this device; None is all of them.
    """

    rows: int
    per_expert: int | None


def capacity(
    tokens: int, top_k: int, num_experts: int, devices: int, factor: float | None = None
) -> Capacity:
    """Return the places for the choices of `tokens` tokens.

    Args:
      tokens: T.
      top_k: k.
      num_experts: E.
      devices: P.
      factor: None is dropless: places for any choices of the router. Otherwise each expert takes
        at most ceil(factor T k / E).
    """
    here = num_experts // devices
    dropless = tokens * min(top_k, here)
    if factor is None:
        return Capacity(dropless, None)
    each = min(tokens, math.ceil(factor * tokens * top_k / num_experts))
    return Capacity(min(here * each, dropless), each)


class Offsets(NamedTuple):
    """The places of choices.

    Attributes:
      place_Tk: [T, k] int32, p C + c if the choice is row c for destination p; P C is nowhere.
      choice_PC: [P, C] int32, the choice t k + j in each place; -1 is empty.
      rows_Pe: [P, e] int32, rows for each expert, consecutive in each destination.
      dropped: int32, choices without a place.
    """

    place_Tk: jax.Array
    choice_PC: jax.Array
    rows_Pe: jax.Array
    dropped: jax.Array


def offsets(ids_Tk: jax.Array, num_experts: int, devices: int, places: Capacity) -> Offsets:
    """Sort choices by expert; once an expert's places are full, later tokens get none.

    Args:
      ids_Tk: [T, k] int32, distinct experts per token; a value outside [0, E) travels nowhere and
        is not counted.
      num_experts: E.
      devices: P, each with E / P consecutive experts.
      places: the result of `capacity`.
    """
    ids = ids_Tk.reshape(-1)
    wanted = jnp.logical_and(ids >= 0, ids < num_experts)
    key = jnp.where(wanted, ids, num_experts).astype(jnp.int32)
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    first = first_of_each(key, num_experts)
    count = first[1:] - first[:-1]
    numbers = jnp.arange(ids.shape[0], dtype=jnp.int32)
    rank = jnp.zeros_like(ids).at[order].set(numbers, unique_indices=True) - first[key]
    if places.per_expert is not None:
        wanted = jnp.logical_and(wanted, rank < places.per_expert)
        count = jnp.minimum(count, places.per_expert)
    rows_Pe = count.reshape(devices, num_experts // devices)
    before_Pe = jnp.cumsum(rows_Pe, axis=1, dtype=jnp.int32) - rows_Pe
    base_Pe = before_Pe + (jnp.arange(devices, dtype=jnp.int32) * places.rows)[:, None]
    nowhere = devices * places.rows
    base = jnp.append(base_Pe.reshape(-1), jnp.int32(nowhere))
    place = jnp.where(wanted, base[key] + rank, nowhere)
    choice = jnp.full(nowhere, -1, jnp.int32).at[place].set(numbers, mode="drop")
    dropped = first[num_experts] - rows_Pe.sum(dtype=jnp.int32)
    return Offsets(
        place.reshape(ids_Tk.shape), choice.reshape(devices, places.rows), rows_Pe, dropped
    )


def experts_of_rows(rows_Pe: jax.Array, places: int) -> jax.Array:
    """Return the expert (0 to e - 1) of each row from each device, [P, C]; -1 is empty."""
    ends_Pe = jnp.cumsum(rows_Pe, axis=1, dtype=jnp.int32)
    row_C = jnp.arange(places, dtype=jnp.int32)
    passed_PC = (row_C[None, :, None] >= ends_Pe[:, None, :]).sum(axis=2, dtype=jnp.int32)
    return jnp.where(passed_PC < rows_Pe.shape[1], passed_PC, -1)


@jax.custom_vjp
def pack(x_TD: jax.Array, places: Offsets) -> jax.Array:
    """Put tokens into their places: [T, D] -> [P, C, D], zeros in empty places."""
    tokens, top_k = places.place_Tk.shape
    choice_PC = places.choice_PC
    # The index after the last token marks an empty place.
    token_PC = jnp.where(choice_PC >= 0, choice_PC // top_k, tokens)
    return x_TD.at[token_PC].get(mode="fill", fill_value=0)


@jax.custom_vjp
def unpack(rows_PCD: jax.Array, places: Offsets) -> jax.Array:
    """Return rows to their choices: [P, C, D] -> [T, k, D], zeros for choices without a place."""
    flat = rows_PCD.reshape(-1, rows_PCD.shape[-1])
    return flat.at[places.place_Tk].get(mode="fill", fill_value=0)


def _pack_backward(places: Offsets, d_rows_PCD):
    d_TkD = unpack(d_rows_PCD, places)
    return d_TkD.sum(axis=1, dtype=accumulator_dtype(d_TkD.dtype)).astype(d_TkD.dtype), None


def _unpack_backward(places: Offsets, d_TkD):
    flat = d_TkD.reshape(-1, d_TkD.shape[-1])
    choice = jnp.where(places.choice_PC >= 0, places.choice_PC, flat.shape[0])
    return flat.at[choice].get(mode="fill", fill_value=0), None


# Each is the other's transpose, so the backward pass gathers too. JAX's own rule would scatter.
pack.defvjp(lambda x, places: (pack(x, places), places), _pack_backward)
unpack.defvjp(lambda rows, places: (unpack(rows, places), places), _unpack_backward)


def combine(rows_PCD: jax.Array, gates_Tk: jax.Array, places: Offsets) -> jax.Array:
    """Return y_t = sum_j gate_tj row(place_tj), [T, D] in the rows' dtype.

    It is summed in float32 or wider.
    """
    return _gated_sum(unpack(rows_PCD, places), gates_Tk)


@jax.custom_vjp
def _gated_sum(rows_TkD: jax.Array, gates_Tk: jax.Array) -> jax.Array:
    dtype = accumulator_dtype(rows_TkD.dtype)
    y_TD = jnp.einsum("tkd,tk->td", rows_TkD.astype(dtype), gates_Tk.astype(dtype))
    return y_TD.astype(rows_TkD.dtype)


def _gated_sum_backward(saved, d_TD):
    rows_TkD, gates_Tk = saved
    dtype = accumulator_dtype(rows_TkD.dtype)
    d_TD = d_TD.astype(dtype)
    d_rows = gates_Tk.astype(dtype)[:, :, None] * d_TD[:, None, :]
    d_gates = jnp.einsum("tkd,td->tk", rows_TkD.astype(dtype), d_TD)
    return d_rows.astype(rows_TkD.dtype), d_gates.astype(gates_Tk.dtype)


# JAX's own rule would keep the rows for the backward pass in the wide dtype.
_gated_sum.defvjp(lambda rows, gates: (_gated_sum(rows, gates), (rows, gates)), _gated_sum_backward)


def first_of_each(key_R: jax.Array, experts: int) -> jax.Array:
    """Return the number of keys below 0, 1, ..., e, [e + 1] int32, by comparisons, not a loop."""
    bounds = jnp.arange(experts + 1, dtype=jnp.int32)
    return (key_R[None, :] < bounds[:, None]).sum(axis=1, dtype=jnp.int32)
