"""The compression of a model's weights: a dense model's parameters to a compressed model's."""

import functools
from typing import Any

import jax
from flax import nnx

from parallax.compression import Packed, compress
from parallax.models.config import ModelConfig
from parallax.models.packed_weight import PackedWeight
from parallax.models.transformer import abstract_transformer


def compress_params(dense: nnx.State, config: ModelConfig) -> nnx.State:
    """Return the parameters of `config` from those of the same model without compression.

    Args:
      dense: parameters of `config.replace(compression=None)`, of any float dtype, padded for
        stages or not.
      config: the model, with `compression`.

    Jit it, with `out_shardings` if the weights are split.
    """
    flat: dict[tuple, Any] = dict(nnx.to_flat_state(dense))
    for path, like in packed_weights(config).items():
        weight = flat.pop(path)
        packed = _compress_stack(weight[...], like)
        for name in like.names:
            flat[(*path, name)] = getattr(like, name).replace(getattr(packed, name))
    return nnx.from_flat_state(list(flat.items()))


def layer_config(config: ModelConfig, formats: tuple[str, str]) -> ModelConfig:
    """Return the model with one layer, whose attention and MLP matrices have these formats.

    A layer whose formats are both the model's dtype is dense.

    Raises:
      ValueError: sizes that a format cannot store, layers of several kinds, or dense first ones.
    """
    if len(config.kinds) > 1:
        raise ValueError(
            f"Model '{config.name}': its layers are of {len(config.kinds)} kinds, and one layer "
            "alone does not say which. Compress and deploy models with one kind of layer."
        )
    if config.dense_layers:
        raise ValueError(
            f"Model '{config.name}': it has dense first layers, and one layer alone does not say "
            "whether it is one. Compress and deploy models without them."
        )
    dense = formats == (config.dtype, config.dtype)
    return config.replace(num_layers=1, compression=None if dense else formats)


@functools.lru_cache(maxsize=64)
def packed_weights(config: ModelConfig) -> dict[tuple, PackedWeight]:
    """Return every compressed weight of a model, abstract, keyed by the dense weight's path."""
    model = nnx.merge(*abstract_transformer(config))
    return {
        tuple(path): module
        for path, module in nnx.iter_graph(model)
        if isinstance(module, PackedWeight)
    }


def _compress_stack(w: jax.Array, like: PackedWeight) -> Packed:
    """Compress the weights of a stack of layers, [N, ...]."""
    return jax.vmap(lambda w: compress(w, like.form, like.inputs))(w)
