"""A model's parameters as their storage format leaves them, and training through that.

Everything stays an array of the model's dtype: what changes is which values it can have. So rows of
a table differ in stored weights alone, and the arithmetic is the same.
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
from parallax.models.config import ModelConfig

Formats = Sequence[tuple[str, str]]  # of every layer: its attention's, its MLP's
PARTS = ("attention", "mlp")
# Inputs of a layer's matrix, behind the dim of layers.
MATRICES: dict[str, dict[str, tuple[int, ...]]] = {
    "attention": {"q_DHK": (0,), "k_DGK": (0,), "v_DGK": (0,), "out_HKD": (0, 1)},
    "mlp": {"up_DF": (0,), "gate_DF": (0,), "down_FD": (0,)},
}
REST = "float16"  # of norms and tables, in every row


def store(params: nnx.State, formats: Formats) -> nnx.State:
    """Every matrix compressed and back; norms and tables rounded to float16.

    Args:
      params: of a Transformer without experts, stacked layers, on one device.
      formats: of every layer.

    Raises:
      ValueError: sizes that a format cannot store.
    """

    def change(path, w):
        found = _matrix(path)
        if found is None:
            return w.astype(REST).astype(w.dtype)
        part, inputs = found
        layers = [
            _stored(w[i], parse_format(pair[PARTS.index(part)]), inputs)
            for i, pair in enumerate(formats)
        ]
        return jnp.stack(layers)

    return jax.tree_util.tree_map_with_path(change, params)


def compressed(
    params: nnx.State, config: ModelConfig, formats: tuple[str, str]
) -> tuple[nnx.State, ModelConfig]:
    """The same parameters as a model that stores them compressed, as it would be deployed.

    Args:
      config: of the parameters; its dtype stays that of the arithmetic.
      formats: of attention and MLP, in all layers.

    Returns:
      What is stored, and the config that reads it; norms and tables are rounded to float16.
    """
    found = config.replace(compression=formats)

    def round_rest(path, w):
        return w if _matrix(path) else w.astype(REST).astype(w.dtype)

    rounded = jax.tree_util.tree_map_with_path(round_rest, params)
    return compress_params(rounded, found), found


def masks(params: nnx.State, formats: tuple[str, str]) -> nnx.State:
    """True where a weight stays: of matrices in an N:M format the largest, elsewhere all."""

    def make(path, w):
        found = _matrix(path)
        if found is None:
            return jnp.ones_like(w, bool)
        part, inputs = found
        form = parse_format(formats[PARTS.index(part)])
        if not form.sparse:
            return jnp.ones_like(w, bool)
        return mask(w, form.kept, form.of, inputs[-1] + 1)

    return jax.tree_util.tree_map_with_path(make, params)


def masked(params: nnx.State, kept: nnx.State) -> nnx.State:
    """Weights that do not stay are zero."""

    def change(w, keep):
        return jnp.where(keep, w, jnp.zeros((), w.dtype))

    return jax.tree.map(change, params, kept)


def rounding(formats: tuple[str, str] | None) -> tuple[str, str] | None:
    """Formats without their sparse part, which masks do: fewer programs. None if none rounds."""
    if formats is None:
        return None
    # Training rounds no activations.
    attention, mlp = (name.split("+")[0].replace("w8a8", "int8") for name in formats)
    if all(parse_format(name).group is None for name in (attention, mlp)):
        return None
    return attention, mlp


def seen_in_training(formats: tuple[str, str] | None) -> Callable[[Any, Any], Any]:
    """(params, masks) -> the parameters that a training step's forward pass sees.

    Masks are exact: what they leave out gets no gradient. Rounding to integers is passed through
    (straight-through): the loss is the rounded model's, the gradient goes to what was rounded.

    Args:
      formats: that round, see `rounding`, in all layers; None trains the model as it is.

    Reference: Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic
      Neurons", 2013 (straight-through); Jacob et al., "Quantization and Training of Neural Networks
      for Efficient Integer-Arithmetic-Only Inference", 2018.
    """

    def see(params, kept):
        params = masked(params, kept)
        return params if formats is None else _rounded_through(params, formats)

    return see


def _rounded_through(params, formats: tuple[str, str]):
    def change(path, w):
        found = _matrix(path)
        if found is None:
            return w
        part, inputs = found
        # Masks have done the sparse part: zeros stay zeros, and the largest stays the largest.
        form = parse_format(formats[PARTS.index(part)])
        if form.group is None:
            return w
        rounded = _round_trip(w, form, tuple(i + 1 for i in inputs))
        return w + jax.lax.stop_gradient(rounded - w)

    return jax.tree_util.tree_map_with_path(change, params)


@functools.partial(jax.jit, static_argnames=("form", "inputs"))
def _stored(w: jax.Array, form: Format, inputs: tuple[int, ...]) -> jax.Array:
    return _round_trip(w, form, inputs)


def _round_trip(w: jax.Array, form: Format, inputs: tuple[int, ...]) -> jax.Array:
    return decompress(compress(w, form, inputs), form, inputs[-1], w.dtype)


def _matrix(path) -> tuple[str, tuple[int, ...]] | None:
    """(part, inputs) of a parameter that is compressed."""
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    for part, found in MATRICES.items():
        for name in names:
            if part in names and name in found:
                return part, found[name]
    return None
