"""The orders of tokens: which tokens of a sequence each device of a ring holds.

natural: device i holds the i-th contiguous piece.
zigzag:  the sequence is cut into 2P chunks and device i holds chunks i and 2P-1-i, so that under a
         causal mask every device has the same work. Chunks 0..P-1 have floor(L/2P) tokens and
         chunks P..2P-1 have ceil(L/2P), for any L that the devices divide.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Array, Int

Order = Literal["natural", "zigzag"]
ORDERS: tuple[str, ...] = get_args(Order)


def check_order(order: str) -> None:
    """Raise ValueError for an unknown order."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}.")


def chunk_lengths(local_length: int) -> tuple[int, int]:
    """Return the numbers of tokens of a device's early and late zigzag chunks."""
    return local_length // 2, local_length - local_length // 2


def local_positions(
    index: Int[Array, ""] | int, local_length: int, ring_size: int, order: str
) -> Int[Array, " local_length"]:
    """Return the positions in the whole sequence of a device's tokens, [L / P] int32.

    A Python integer as index gives a NumPy array, known at trace time.
    """
    check_order(order)
    numpy = numpy_of(index)
    steps = numpy.arange(local_length, dtype=numpy.int32)
    if order == "natural":
        return index * local_length + steps
    early, late = chunk_lengths(local_length)
    early_start = index * early
    late_start = ring_size * early + (ring_size - 1 - index) * late
    return numpy.where(steps < early, early_start + steps, late_start + steps - early)


def numpy_of(index: Any) -> Any:
    """Return NumPy for an index that is a number, jax.numpy for a traced one."""
    return np if isinstance(index, int | np.integer) else jnp


def _permutation(length: int, ring_size: int, order: str) -> np.ndarray:
    if length % ring_size:
        raise ValueError(
            f"order: {ring_size} devices do not divide a sequence of {length} tokens. "
            f"Use a length that is a multiple of {ring_size}."
        )
    local = length // ring_size
    return np.concatenate([local_positions(i, local, ring_size, order) for i in range(ring_size)])


def to_order(x: jax.Array, ring_size: int, order: str, axis: int = 1) -> jax.Array:
    """Permute a whole sequence so that each device of a ring holds a contiguous piece.

    Args:
      x: any array with the sequence in dim `axis`.
      ring_size: devices of the ring.
      order: "natural" (no permutation) or "zigzag".
      axis: the sequence's dim.

    Returns:
      The same shape; shard it contiguously over the ring.
    """
    return _take(x, _permutation(x.shape[axis], ring_size, order), axis)


def undo_order(x: jax.Array, ring_size: int, order: str, axis: int = 1) -> jax.Array:
    """Permute a sequence back to its natural order: inverse of `to_order`."""
    return undo_positions(x, _permutation(x.shape[axis], ring_size, order), axis)


def undo_positions(x: jax.Array, positions: np.ndarray, axis: int = 1) -> jax.Array:
    """Permute x to the natural order of the sequence.

    Args:
      x: an array whose dim `axis` holds the tokens at `positions`.
      positions: a permutation of 0 .. L - 1, known at trace time.
      axis: the sequence's dim.
    """
    return _take(x, np.argsort(positions), axis)


def _take(x: jax.Array, positions: np.ndarray, axis: int) -> jax.Array:
    """Permute x, which keeps its sharding where mesh axes are Explicit."""
    if np.array_equal(positions, np.arange(len(positions))):
        return x
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return jnp.take(x, positions, axis=axis)
    index = (slice(None),) * (axis % x.ndim) + (positions,)
    return x.at[index].get(out_sharding=sharding)
