"""The products of activations and weights, which may be integers with scales.

The einsum letters of a spec name the dims of local shards.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from parallax.compression.activations import int8_rounded, int8_step


class Int8Weight(NamedTuple):
    """An int8 weight, whose product is one of integers.

    Attributes:
      values: int8, with the weight's dims.
      scales: float32, the same dims, size 1 where the product sums.
    """

    values: Any
    scales: Any


def product(
    x: jax.Array, w: jax.Array | Int8Weight, spec: str, axes: tuple[str, ...] = ()
) -> jax.Array:
    """Return `einsum(spec, x, w)` of local shards, in x's dtype.

    Args:
      x: activations, floating point.
      w: an array, or an Int8Weight: then x is rounded to int8 too, by the largest magnitude of each
        token's row, and sums are exact in int32.
      spec: two inputs, one output.
      axes: mesh axes that split the summed dims: a row's largest magnitude is that over all shards.

    Cost: with integers and `axes` an all-reduce of one number per row (its maximum).

    Reference: Dettmers et al., "LLM.int8()", 2022 (vector-wise scales).
    """
    if not isinstance(w, Int8Weight):
        return jnp.einsum(spec, x, w)
    inputs, output = spec.split("->")
    of_x, of_w = inputs.split(",")
    summed = tuple(i for i, letter in enumerate(of_x) if letter not in output)
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    step = int8_step(x, summed, axes)
    rounded = int8_rounded(x, step).astype(jnp.int8)
    sums = jnp.einsum(spec, rounded, w.values, preferred_element_type=jnp.int32)
    scales = _at(w.scales.astype(wide), of_w, output) * _at(step, of_x, output)
    return (sums.astype(wide) * scales).astype(x.dtype)


def _at(scales: jax.Array, letters: str, output: str) -> jax.Array:
    """Return scales with the dims of the output, in its order, size 1 for missing dims."""
    kept = [letter for letter in output if letter in letters]
    squeezed = scales.squeeze(tuple(i for i, a in enumerate(letters) if a not in output))
    order = [letter for letter in letters if letter in output]
    moved = squeezed.transpose([order.index(letter) for letter in kept])
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if letter in kept else 1 for letter in output])
