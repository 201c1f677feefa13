"""The MLP in XLA, which runs everywhere and is the kernel's reference."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.kernels.ring_attention.reference import accumulator_dtype


def _gelu(x):
    """Compute the tanh form of GELU, written as a sigmoid: (1 + tanh u) / 2 is sigmoid(2 u).

    A GPU's own tanh is exact to 11 bits, no more than float16 keeps; its exponential to 22.
    """
    slope = 2 * math.sqrt(2 / math.pi)
    return _times_sigmoid(x, x * (slope + 0.044715 * slope * x * x))


def _times_sigmoid(x, z):
    # A quotient: `jax.nn.sigmoid` takes more registers than the kernel has.
    return x / (1 + jnp.exp(-z))


# None of them rounds: the hidden rows are rounded once, afterwards.
ACTIVATIONS: dict[str, Callable] = {
    "gelu": _gelu,
    "relu": lambda x: jnp.maximum(x, 0.0),
    "silu": lambda x: _times_sigmoid(x, x),
}


class Matrix(NamedTuple):
    """One weight matrix of every layer of a stack, as stored.

    Attributes:
      values: [layers, inputs, outputs], of a float dtype or int8.
      scales: [layers, inputs / group, outputs] float32 for int8 values; None for floats.
      bias: [layers, outputs], or None.
    """

    values: jax.Array
    scales: jax.Array | None = None
    bias: jax.Array | None = None


def mlp(x, up: Matrix, down: Matrix, gate: Matrix | None, *, layer, activation: str) -> jax.Array:
    """Compute `api.cache_tiled_mlp`, decompressing integers to x's dtype before each product."""
    wide = accumulator_dtype(x.dtype)

    def product(x, matrix: Matrix):
        weight = of_layer(matrix.values, layer)
        if matrix.scales is not None:
            scales = of_layer(matrix.scales, layer)
            scales = jnp.repeat(scales, weight.shape[0] // scales.shape[0], axis=0)
            weight = (weight.astype(wide) * scales.astype(wide)).astype(x.dtype)
        sums = jnp.einsum("ti,io->to", x, weight, preferred_element_type=wide)
        if matrix.bias is None:
            return sums
        return sums + of_layer(matrix.bias, layer).astype(wide)[None]

    hidden = act(activation, product(x, up), *(() if gate is None else (product(x, gate),)))
    return product(hidden.astype(x.dtype), down)


def act(activation: str, up, gate=None):
    """Compute the hidden rows from the sums of one matrix, or of two."""
    function = ACTIVATIONS[activation]
    return function(up) if gate is None else up * function(gate)


def of_layer(x: jax.Array, layer) -> jax.Array:
    """Return the array of one layer of a stack."""
    return lax.dynamic_index_in_dim(x, layer, keepdims=False)


def group_of(matrix: Matrix) -> int | None:
    """Return how many inputs share a scale per output: 0 for all of them; None without scales."""
    if matrix.scales is None:
        return None
    inputs, scales = matrix.values.shape[1], matrix.scales.shape[1]
    return 0 if scales == 1 else inputs // scales
