"""The products of activations and weights, which may be integers with scales.

The einsum letters of a spec name the dims of local shards.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from parallax.compression import Format, Packed, decompress
from parallax.compression.activations import int8_rounded, int8_step
from parallax.kernels import dispatch
from parallax.kernels.packed_matmul import PackedMatrix, packed_matmul, runs_kernel
from parallax.kernels.packed_matmul.reference import KEPT, OF


class Int8Weight(NamedTuple):
    """An int8 weight, whose product is one of integers.

    Attributes:
      values: int8, with the weight's dims.
      scales: float32, the same dims, size 1 where the product sums.
    """

    values: Any
    scales: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("packed",), meta_fields=("form", "inputs", "dtype"),
)  # fmt: skip
@dataclass(frozen=True)
class StoredWeight:
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

    def unpacked(self) -> "jax.Array | Int8Weight":
        """Return the weight as products of XLA take it."""
        if self.form.activation_bits:
            return Int8Weight(self.packed.values, self.packed.scales)
        return decompress(self.packed, self.form, self.inputs[-1], self.dtype)


def product(
    x: jax.Array, w: jax.Array | Int8Weight | StoredWeight, spec: str, axes: tuple[str, ...] = ()
) -> jax.Array:
    """Return `einsum(spec, x, w)` of local shards, in x's dtype.

    Args:
      x: activations, floating point.
      w: an array; a StoredWeight, which the kernel `packed_matmul` reads packed, where it is
        validated or enabled and supports it, and XLA unpacks elsewhere; or an Int8Weight. With one,
        or a StoredWeight in W8A8, x is rounded to int8 too, by the largest magnitude of each
        token's row, and sums are exact in int32.
      spec: two inputs, one output.
      axes: mesh axes that split the summed dims: a row's largest magnitude is that over all shards.

    Cost: with integers and `axes` an all-reduce of one number per row (its maximum).

    Reference: Dettmers et al., "LLM.int8()", 2022 (vector-wise scales).
    """
    if not isinstance(w, Int8Weight) and not (
        isinstance(w, StoredWeight) and w.form.activation_bits
    ):
        return _contracted(x, w, spec)
    inputs, output = spec.split("->")
    of_x, of_w = inputs.split(",")
    summed = tuple(i for i, letter in enumerate(of_x) if letter not in output)
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    step = int8_step(x, summed, axes)
    rounded = int8_rounded(x, step).astype(jnp.int8)
    sums = _contracted(rounded, w, spec)
    scales = w.scales if isinstance(w, Int8Weight) else w.packed.scales
    scales = _at(scales.astype(wide), of_w, output) * _at(step, of_x, output)
    return (sums.astype(wide) * scales).astype(x.dtype)


def _contracted(x: jax.Array, w: jax.Array | Int8Weight | StoredWeight, spec: str) -> jax.Array:
    """Return the contraction, by the kernel where it runs: in x's dtype, or int32 of integers."""
    if isinstance(w, StoredWeight):
        y = _by_kernel(x, w, spec)
        if y is not None:
            return y
        w = w.unpacked()
    if isinstance(w, Int8Weight):
        return jnp.einsum(spec, x, w.values, preferred_element_type=jnp.int32)
    return jnp.einsum(spec, x, w)


def _by_kernel(x: jax.Array, w: StoredWeight, spec: str) -> jax.Array | None:
    """Return the product by the kernel that reads packed weights; None where it does not run."""
    first, summed = w.inputs[0], len(w.inputs)
    inputs, output = spec.split("->")
    of_x, of_w = inputs.split(",")
    experts, outputs = of_w[:first], of_w[first + summed :]
    rows = of_x[first:-summed]
    if (of_x, output) != (experts + rows + of_w[first:][:summed], experts + rows + outputs):
        reason = f"it multiplies rows by a matrix, and this is {spec}"
        dispatch.record_refusal("packed_matmul", "mosaic", reason)
        return None
    flat = x.reshape(*x.shape[:first], -1, math.prod(x.shape[-summed:]))
    matrix = kernel_matrix(flat, w)
    if matrix is None:
        return None
    sums = packed_matmul(flat, matrix)
    y = sums if x.dtype == jnp.int8 else sums.astype(x.dtype)
    return y.reshape(*x.shape[:-summed], *w.packed.values.shape[first + summed :])


def kernel_matrix(x: jax.Array, w: StoredWeight) -> PackedMatrix | None:
    """Return a weight as `packed_matmul` takes it; None where its kernel does not run.

    Args:
      x: [..., T, K], of which the number of rows T and the dtype matter.
      w: a weight whose dims before its inputs are experts, and those after them outputs.
    """
    form, first, last = w.form, w.inputs[0], w.inputs[-1] + 1
    if form.sparse and (form.kept, form.of) != (KEPT, OF):
        reason = f"it has {KEPT}:{OF} sparsity, not {form.kept}:{form.of}"
        dispatch.record_refusal("packed_matmul", "mosaic", reason)
        return None

    def as_matrix(a):
        return a.reshape(*a.shape[:first], math.prod(a.shape[first:last]), -1)

    # Integer sums of W8A8 are scaled afterwards, with the scales of tokens.
    stored = w.packed if form.activation_bits is None else Packed(w.packed.values, None, None)
    matrix = PackedMatrix(*jax.tree.map(as_matrix, stored))
    return matrix if runs_kernel(x, matrix) else None


def _at(scales: jax.Array, letters: str, output: str) -> jax.Array:
    """Return scales with the dims of the output, in its order, size 1 for missing dims."""
    kept = [letter for letter in output if letter in letters]
    squeezed = scales.squeeze(tuple(i for i, a in enumerate(letters) if a not in output))
    order = [letter for letter in letters if letter in output]
    moved = squeezed.transpose([order.index(letter) for letter in kept])
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if letter in kept else 1 for letter in output])
