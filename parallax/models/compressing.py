"""A model's weights, compressed: parameters of one config to those of another."""

import functools
from typing import Any

import jax
from flax import nnx

from parallax.compression import Packed, compress
from parallax.models.config import ModelConfig
from parallax.models.packed_weight import PackedWeight
from parallax.models.transformer import abstract_transformer


def compress_params(dense: nnx.State, config: ModelConfig) -> nnx.State:
    """Parameters of `config` from those of the same model without compression.

    Args:
      dense: of `config.replace(compression=None)`, of any float dtype, filled up for stages or not.
      config: with `compression`.

    To be jitted, with `out_shardings` where the weights are split.
    """
    flat: dict[tuple, Any] = dict(nnx.to_flat_state(dense))
    for path, where in packed_weights(config).items():
        weight = flat.pop(path)
        packed = _compress_stack(weight[...], where)
        for name in where.names:
            flat[(*path, name)] = getattr(where, name).replace(getattr(packed, name))
    return nnx.from_flat_state(list(flat.items()))


def layer_config(config: ModelConfig, formats: tuple[str, str]) -> ModelConfig:
    """The model with one layer, whose attention's and MLP's matrices have these formats; both of
    the model's dtype leave it dense.

    Raises:
      ValueError: sizes that a format cannot have.
    """
    dense = formats == (config.dtype, config.dtype)
    return config.replace(num_layers=1, compression=None if dense else formats)


@functools.lru_cache(maxsize=64)
def packed_weights(config: ModelConfig) -> dict[tuple, PackedWeight]:
    """Every compressed weight of a model, abstract, by the path of what it stands for."""
    model = nnx.merge(*abstract_transformer(config))
    return {
        tuple(path): module
        for path, module in nnx.iter_graph(model)
        if isinstance(module, PackedWeight)
    }


def _compress_stack(w: jax.Array, where: PackedWeight) -> Packed:
    """Of a stack of layers, [N, ...]."""
    return jax.vmap(lambda w: compress(w, where.form, where.inputs))(w)
