"""A model's parameters as rounded by their storage format, and training through that rounding.

Everything stays an array of the model's dtype; only the values it can take change. So rows of a
table differ in stored weights alone, and the arithmetic is the same.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.compression import Format, compress, decompress, parse_format
from parallax.compression.sparsity import mask
from parallax.models.compressing import compress_params
from parallax.models.config import PARTS, ModelConfig

Formats = Sequence[tuple[str, str]]  # per layer: its attention's and its MLP's
Inputs = tuple[int, ...]  # dims of one layer's matrix that its product sums over
REST = "float16"  # dtype of norms and tables, in every row


def store(params: nnx.State, formats: Formats) -> nnx.State:
    """Compress and decompress every matrix, and round norms and tables to float16.

    Args:
      params: parameters of a Transformer without experts, stacked layers, on one device.
      formats: formats per layer.

    Raises:
      ValueError: sizes that a format cannot store.
    """

    def change(w, part: str | None, inputs: Inputs):
        if part is None:
            return w.astype(REST).astype(w.dtype)
        layers = [
            _stored(w[i], parse_format(pair[PARTS.index(part)]), inputs)
            for i, pair in enumerate(formats)
        ]
        return jnp.stack(layers)

    return _changed(params, change)


def compressed(
    params: nnx.State, config: ModelConfig, formats: tuple[str, str]
) -> tuple[nnx.State, ModelConfig]:
    """Return the same parameters stored compressed, as they would be deployed.

    Args:
      config: config of the parameters; its dtype stays that of the arithmetic.
      formats: formats of attention and MLP, in all layers.

    Returns:
      The stored parameters, and the config that reads them; norms and tables are rounded to
      float16.
    """
    stored = config.replace(compression=formats)

    def round_rest(w, part: str | None, inputs: Inputs):
        return w.astype(REST).astype(w.dtype) if part is None else w

    return compress_params(_changed(params, round_rest), stored), stored


def masks(params: nnx.State, formats: tuple[str, str]) -> nnx.State:
    """Return masks of the weights to keep: the largest of N:M matrices, all others' weights."""

    def make(w, part: str | None, inputs: Inputs):
        form = None if part is None else parse_format(formats[PARTS.index(part)])
        if form is None or not form.sparse:
            return jnp.ones_like(w, bool)
        return mask(w, form.kept, form.of, inputs[-1] + 1)

    return _changed(params, make)


def masked(params: nnx.State, kept: nnx.State) -> nnx.State:
    """Set weights that are not kept to zero."""

    def change(w, keep):
        return jnp.where(keep, w, jnp.zeros((), w.dtype))

    return jax.tree.map(change, params, kept)


def rounding(formats: tuple[str, str] | None) -> tuple[str, str] | None:
    """Drop the sparse part of formats, which masks cover; return None if no format rounds.

    Fewer distinct formats are fewer programs.
    """
    if formats is None:
        return None
    # Training rounds no activations.
    attention, mlp = (name.split("+")[0].replace("w8a8", "int8") for name in formats)
    if all(parse_format(name).group is None for name in (attention, mlp)):
        return None
    return attention, mlp


def seen_in_training(formats: tuple[str, str] | None) -> Callable[[Any, Any], Any]:
    """Return a function (params, masks) -> the parameters of a training step's forward pass.

    Masks are exact: weights that they drop get no gradient. Rounding to integers uses a
    straight-through gradient: the loss is the rounded model's, the gradient goes to the weights
    before rounding.

    Args:
      formats: rounding formats, see `rounding`, in all layers; None trains the model as it is.

    Reference: Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic
      Neurons", 2013 (straight-through); Jacob et al., "Quantization and Training of Neural Networks
      for Efficient Integer-Arithmetic-Only Inference", 2018.
    """

    def see(params, kept):
        params = masked(params, kept)
        return params if formats is None else _rounded_through(params, formats)

    return see


def _rounded_through(params, formats: tuple[str, str]):
    def change(w, part: str | None, inputs: Inputs):
        # Masks have already applied sparsity: zeros stay zeros, and the largest stays the largest.
        form = None if part is None else parse_format(formats[PARTS.index(part)])
        if form is None or form.group is None:
            return w
        rounded = _round_trip(w, form, tuple(i + 1 for i in inputs))
        return w + jax.lax.stop_gradient(rounded - w)

    return _changed(params, change)


@functools.partial(jax.jit, static_argnames=("form", "inputs"))
def _stored(w: jax.Array, form: Format, inputs: tuple[int, ...]) -> jax.Array:
    return _round_trip(w, form, inputs)


def _round_trip(w: jax.Array, form: Format, inputs: tuple[int, ...]) -> jax.Array:
    return decompress(compress(w, form, inputs), form, inputs[-1], w.dtype)


def _changed(params: nnx.State, change: Callable[[Any, str | None, Inputs], Any]) -> nnx.State:
    """Apply `change(array, part, inputs)` to every parameter, with the marks of `weight`."""

    def one(_, w: nnx.Variable):
        facts = w.get_metadata()
        return w.replace(change(w[...], facts.get("part"), facts.get("inputs", ())))

    return nnx.map_state(one, params)
