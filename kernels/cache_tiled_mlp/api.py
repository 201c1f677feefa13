"""The operation and its dispatch: the MLP of a decoding step, all microbatches at once.

Shapes: T tokens of all microbatches, D model width, F MLP width, N layers of a stack.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from parallax.kernels import dispatch
from parallax.kernels.cache_tiled_mlp import reference
from parallax.kernels.cache_tiled_mlp.cut import kind_of, unsupported
from parallax.kernels.cache_tiled_mlp.reference import Matrix, accumulator_dtype

Activation = Literal["gelu", "relu", "silu"]


def cache_tiled_mlp(
    x: Float[Array, "t d"],
    up: Matrix,
    down: Matrix,
    gate: Matrix | None = None,
    *,
    layer: Int[Array, ""] | int = 0,
    activation: Activation = "gelu",
    out_dtype=None,
    implementation: str | None = None,
) -> Float[Array, "t d"]:
    """Compute activation(x up) down, or (x up * activation(x gate)) down, reading weights once.

    This is the order of cache-tiled layers: a weight tile serves all tokens before the next tile.
    Weights stay in their stack of layers, since slicing a layer out would copy it.

    Args:
      x: [T, D], the rows of all microbatches.
      up, gate: `Matrix` with values [N, D, F]. down: with values [N, F, D].
      layer: index into the stack.
      activation: "gelu" (by tanh), "relu" or "silu"; applied to the gate, if there is one.
      out_dtype: dtype of the result; None is float32, or float64 for float64 x.
      implementation: "xla", which supports all of this; "mosaic", a kernel for Hopper GPUs: float16
        and bfloat16, at most 512 tokens, weights in x's dtype with D and F multiples of 64, or
        int8 with multiples of 128; or None, the fastest that supports the call and is validated
        (`dispatch.choose`).

    Returns:
      [T, D]. Sums are float32 or wider; hidden rows are rounded to x's dtype once. "xla" rounds
      decompressed weights to x's dtype first; "mosaic" does so only where groups of inputs share
      scales.

    Raises:
      ValueError: arrays whose shapes or dtypes do not match.
      NotImplementedError: the implementation does not support this; the message names one that
        does. Also a gradient through "mosaic", which is for decoding.

    Cost: 2 T D F FLOPs per matrix. "mosaic" reads each stored weight from device memory once, for
      up to 128 tokens, and from the L2 cache for each further 128; it reads x and the hidden rows
      from the cache, once per weight tile of 256 columns. "xla" copies a layer's weights out of
      their stack.
    Reference: paper `cache_layerwise`.
    """
    _check(x, up, down, gate, activation)
    out_dtype = accumulator_dtype(x.dtype) if out_dtype is None else out_dtype
    if runs_kernel(x, up, down, gate, implementation=implementation):
        # Imported late: the kernel language takes a while to load.
        from parallax.kernels.cache_tiled_mlp import mosaic

        return mosaic.mlp(
            x, up, down, gate, layer=layer, activation=activation, out_dtype=out_dtype
        )
    return reference.mlp(x, up, down, gate, layer=layer, activation=activation).astype(out_dtype)


def runs_kernel(
    x, up: Matrix, down: Matrix, gate: Matrix | None = None, *, implementation: str | None = None
) -> bool:
    """Return whether `cache_tiled_mlp` would run "mosaic", for callers with their own fallback.

    Raises:
      NotImplementedError: as `cache_tiled_mlp`.
    """
    matrices = [up, down] if gate is None else [up, gate, down]
    reasons = {"mosaic": unsupported(x, matrices), "xla": None}
    kind = kind_of(x, matrices)
    return dispatch.choose("cache_tiled_mlp", implementation, reasons, kind=kind) == "mosaic"


def _check(x, up: Matrix, down: Matrix, gate: Matrix | None, activation: str) -> None:
    """Raise ValueError unless shapes, dtypes and names match."""
    if activation not in reference.ACTIVATIONS:
        raise ValueError(
            f"cache_tiled_mlp: activation={activation!r} is none of "
            f"{', '.join(reference.ACTIVATIONS)}."
        )
    (layers, _, width), model = up.values.shape, x.shape[-1]
    for name, matrix, inputs, outputs in (
        ("up", up, model, width), ("down", down, width, model), ("gate", gate, model, width),
    ):  # fmt: skip
        if matrix is None:
            continue
        values, scales, bias = matrix
        expected, integers = (layers, inputs, outputs), values.dtype == jnp.int8
        problem = None
        if x.ndim != 2 or values.shape != expected:
            problem = (
                f"x {x.shape} and up {up.values.shape} require {name} of {expected} "
                f"[layers, inputs, outputs], got {values.shape}."
            )
        elif integers != (scales is not None) or not (integers or values.dtype == x.dtype):
            problem = (
                f"{name} is {values.dtype} with{'out' if scales is None else ''} scales. "
                f"Give x's dtype ({x.dtype}) without, or int8 with."
            )
        elif scales is not None and (
            scales.shape[::2] != (layers, outputs) or inputs % scales.shape[1]
        ):
            problem = (
                f"scales of {name} have shape {scales.shape}, expected "
                f"({layers}, {inputs} / group, {outputs})."
            )
        elif bias is not None and bias.shape != (layers, outputs):
            problem = f"the bias of {name} has shape {bias.shape}, expected {(layers, outputs)}."
        if problem is not None:
            raise ValueError(f"cache_tiled_mlp: {problem}")
