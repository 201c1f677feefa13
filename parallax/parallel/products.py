"""The products of activations and weights, which may be integers with scales.

The einsum letters of a spec name the dims of local shards.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from parallax.compression import Format, Packed, decompress
from parallax.compression.activations import int8_rounded, int8_step
from parallax.kernels import dispatch
from parallax.kernels.packed_matmul import PackedMatrix, packed_matmul, runs_kernel


class Int8Weight(NamedTuple):
    """An int8 weight, whose product is one of integers.

    Attributes:
      values: int8, with the weight's dims.
      scales: float32, the same dims, size 1 where the product sums.
    """

    values: Any
    scales: Any


class StoredWeight(NamedTuple):
    """A packed weight of a decoding step, which its product unpacks.

    Attributes:
      packed: the stored arrays, with the weight's dims.
      form: the format.
      inputs: dims that the product sums over, packed along the last of them.
      dtype: dtype of the weight.
    """

    packed: Packed
    form: Format
    inputs: tuple[int, ...]
    dtype: str

    def dense(self) -> jax.Array:
        """Return the weight."""
        return decompress(self.packed, self.form, self.inputs[-1], self.dtype)


def product(
    x: jax.Array, w: jax.Array | Int8Weight | StoredWeight, spec: str, axes: tuple[str, ...] = ()
) -> jax.Array:
    """Return `einsum(spec, x, w)` of local shards, in x's dtype.

    Args:
      x: activations, floating point.
      w: an array; a StoredWeight, which the kernel `packed_matmul` reads packed, where it is
        validated or enabled and supports it, and XLA unpacks elsewhere; or an Int8Weight: then x is
        rounded to int8 too, by the largest magnitude of each token's row, and sums are exact in
        int32.
      spec: two inputs, one output.
      axes: mesh axes that split the summed dims: a row's largest magnitude is that over all shards.

    Cost: with integers and `axes` an all-reduce of one number per row (its maximum).

    Reference: Dettmers et al., "LLM.int8()", 2022 (vector-wise scales).
    """
    if isinstance(w, StoredWeight):
        y = _by_kernel(x, w, spec)
        if y is not None:
            return y
        w = w.dense()
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


def _by_kernel(x: jax.Array, w: StoredWeight, spec: str) -> jax.Array | None:
    """Return the product by the kernel that reads packed weights; None where it does not run."""
    form, summed = w.form, len(w.inputs)
    if not form.sparse and form.group is None:
        return None  # nothing to unpack
    inputs, output = spec.split("->")
    of_x, of_w = inputs.split(",")
    reason = None
    if of_w[:summed] != of_x[-summed:] or output != of_x[:-summed] + of_w[summed:]:
        reason = f"it multiplies rows by a matrix, and this is {spec}"
    elif form.sparse and (form.kept, form.of) != (2, 4):
        reason = f"it has 2:4 sparsity, not {form.kept}:{form.of}"
    if reason is not None:
        dispatch.record_refusal("packed_matmul", "mosaic", reason)
        return None
    rows = x.reshape(-1, math.prod(x.shape[-summed:]))
    matrix = PackedMatrix(
        *(a if a is None else a.reshape(math.prod(a.shape[:summed]), -1) for a in w.packed)
    )
    if not runs_kernel(rows, matrix):
        return None
    sums = packed_matmul(rows, matrix).astype(x.dtype)
    return sums.reshape(*x.shape[:-summed], *w.packed.values.shape[summed:])


def _at(scales: jax.Array, letters: str, output: str) -> jax.Array:
    """Return scales with the dims of the output, in its order, size 1 for missing dims."""
    kept = [letter for letter in output if letter in letters]
    squeezed = scales.squeeze(tuple(i for i, a in enumerate(letters) if a not in output))
    order = [letter for letter in letters if letter in output]
    moved = squeezed.transpose([order.index(letter) for letter in kept])
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if letter in kept else 1 for letter in output])
