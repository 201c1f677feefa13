"""The N:M sparsity along one dim: of every run of M weights, the N largest are kept."""

import jax
import jax.numpy as jnp


def kept_positions(w: jax.Array, kept: int, of: int, axis: int) -> jax.Array:
    """Return the positions of the `kept` largest magnitudes in each run; ties keep the earlier.

    Args:
      w: [..., n, ...], n a multiple of `of`.
      kept: weights kept per run.
      of: weights per run.
      axis: the dim of n.

    Returns:
      [..., n / of * kept, ...] uint8 from 0 to of - 1, ascending inside a run.

    Reference: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (2:4, magnitude).
    """
    runs = _runs(jnp.abs(w), of, axis)
    order = jnp.argsort(-runs, axis=-1, stable=True)[..., :kept]
    return _joined(jnp.sort(order, axis=-1).astype(jnp.uint8), axis)


def mask(w: jax.Array, kept: int, of: int, axis: int) -> jax.Array:
    """Return a mask of w's shape, True where a weight is kept."""
    positions = _runs(kept_positions(w, kept, of, axis), kept, axis)
    places = jnp.arange(of, dtype=jnp.uint8).reshape((1,) * positions.ndim + (-1,))
    return _joined((positions[..., None] == places).any(-2), axis)


def gather(w: jax.Array, positions: jax.Array, kept: int, of: int, axis: int) -> jax.Array:
    """Return the kept weights, [..., n / of * kept, ...]."""
    runs, places = _runs(w, of, axis), _runs(positions, kept, axis)
    return _joined(jnp.take_along_axis(runs, places.astype(jnp.int32), axis=-1), axis)


def scatter(values: jax.Array, positions: jax.Array, kept: int, of: int, axis: int) -> jax.Array:
    """Return the weights of `gather` in place, zeros elsewhere.

    It compares instead of scattering, because XLA fuses comparisons.
    """
    values, positions = _runs(values, kept, axis), _runs(positions, kept, axis)
    places = jnp.arange(of, dtype=jnp.uint8).reshape((1,) * positions.ndim + (-1,))
    here = positions[..., None] == places
    spread = jnp.where(here, values[..., None], jnp.zeros((), values.dtype))
    return _joined(spread.sum(-2, dtype=values.dtype), axis)


def _runs(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Cut a dim into runs and move it last: [..., n, ...] -> [..., n / size, size]."""
    x = jnp.moveaxis(x, axis, -1)
    return x.reshape(*x.shape[:-1], -1, size)


def _joined(x: jax.Array, axis: int) -> jax.Array:
    return jnp.moveaxis(x.reshape(*x.shape[:-2], -1), -1, axis)
