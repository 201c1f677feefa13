"""The packed matrix, what its bytes mean, and its product in XLA, the kernel's reference.

A *unit* is the inputs that whole bytes of all stored arrays cover: 1 for INT8, 2 for INT4, 8 with
2:4 positions.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

KEPT, OF = 2, 4  # the only sparsity: two values kept of every run of four inputs


class PackedMatrix(NamedTuple):
    """One weight matrix [K inputs, O outputs] as stored; see `parallax.compression.packed`.

    All arrays may have one more dim in front: a matrix for each of E experts.

    Attributes:
      values: [rows, O] int8; uint8, two signed numbers of 4 bits per byte, the earlier input in the
        low bits; or a float dtype. With positions a row is half as many inputs.
      positions: [K / 8, O] uint8, 2 bits per value, the earliest lowest; they ascend inside a run.
        None: dense.
      scales: [K / group, O] float32; None: values are not scaled.
    """

    values: Any
    positions: Any = None
    scales: Any = None

    @property
    def bits(self) -> int:
        """The bits of a value."""
        return 4 if self.values.dtype == jnp.uint8 else 8 * self.values.dtype.itemsize

    @property
    def unit(self) -> int:
        """The inputs that whole bytes of all arrays cover."""
        return unit_of(self.bits, self.positions is not None)

    @property
    def rows(self) -> int:
        """The stored rows of values in a unit."""
        kept = self.unit if self.positions is None else self.unit * KEPT // OF
        return kept // 2 if self.bits == 4 else kept

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs."""
        rows, outputs = self.values.shape[-2:]
        return rows // self.rows * self.unit, outputs

    @property
    def lead(self) -> tuple[int, ...]:
        """The dims in front of a matrix: (E,) for experts, or ()."""
        return self.values.shape[:-2]

    @property
    def experts(self) -> int:
        """The number of matrices."""
        return math.prod(self.lead)

    @property
    def bits_per_weight(self) -> float:
        """The stored bits of values and positions per weight."""
        stored = self.rows * self.values.dtype.itemsize + (self.positions is not None)
        return 8 * stored / self.unit

    @property
    def group(self) -> int:
        """The inputs that share a scale for each output; all of them without scales."""
        return self.shape[0] // (1 if self.scales is None else self.scales.shape[-2])


def unit_of(bits: int, is_sparse: bool) -> int:
    """Return the inputs that whole bytes of values of some bits, and of positions, cover."""
    return 2 * OF if is_sparse else max(1, 8 // bits)


def unpacked(rows: Sequence[jax.Array], positions: jax.Array | None, dtype) -> list[jax.Array]:
    """Return one array per input of a unit, from the stored rows of the unit.

    Args:
      rows: for each row of values in a unit, that row of many units: arrays of one shape.
      positions: the byte of positions of these units, of the same shape, or None.
      dtype: dtype of the results, float32 or wider.
    """
    if rows[0].dtype == jnp.uint8:
        pairs = [row.astype(jnp.int32) for row in rows]
        values = [_whole(x, 4) for pair in pairs for x in (pair, pair >> 4)]
    elif rows[0].dtype == jnp.int8:
        values = [_whole(row.astype(jnp.int32), 8) for row in rows]
    else:
        values = rows
    values = [x.astype(dtype) for x in values]
    if positions is None:
        return values
    places = positions.astype(jnp.int32)
    found = []
    for run in range(0, len(values), KEPT):
        first, last = values[run : run + KEPT]
        # Compared where they are in the byte, without a shift. They ascend.
        of_first, of_last = (places & (3 << 2 * (run + i)) for i in range(KEPT))
        for place in range(OF):
            here = jnp.zeros_like(first)
            if place > 0:
                here = jnp.where(of_last == place << 2 * (run + 1), last, here)
            if place < OF - 1:
                here = jnp.where(of_first == place << 2 * run, first, here)
            found.append(here)
    return found


def _whole(x: jax.Array, bits: int) -> jax.Array:
    """Return the signed number in the lowest bits as float32, without a conversion, which is slow.

    A float32 from 2 ** 23 on holds a whole number in its lowest bits.
    """
    offset = 1 << (bits - 1)
    number = (x & (2**bits - 1)) ^ (0x4B000000 | offset)
    return lax.bitcast_convert_type(number, jnp.float32) - jnp.float32(2**23 + offset)


def matmul(x: jax.Array, matrix: PackedMatrix) -> jax.Array:
    """Compute `api.packed_matmul`, with scaled weights rounded to x's dtype before the product."""
    if x.dtype == jnp.int8:
        return jnp.einsum("...ti,...io->...to", x, matrix.values, preferred_element_type=jnp.int32)
    wide, shape = sums_dtype(x.dtype), (*matrix.lead, *matrix.shape)
    units = matrix.values.reshape(*matrix.lead, -1, matrix.rows, matrix.shape[1])
    rows = [units[..., i, :] for i in range(matrix.rows)]
    weight = jnp.stack(unpacked(rows, matrix.positions, wide), axis=-2).reshape(shape)
    if matrix.scales is not None:
        weight = weight * jnp.repeat(matrix.scales.astype(wide), matrix.group, axis=-2)
    weight = weight.astype(x.dtype)
    return jnp.einsum("...ti,...io->...to", x, weight, preferred_element_type=wide)


def sums_dtype(dtype):
    """Return the accumulator's dtype: float32, or float64 for float64."""
    return jnp.dtype("float64" if dtype == jnp.float64 else "float32")
