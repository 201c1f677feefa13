"""The unsharded reference of a deployment, compressed weights included."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.compression import Packed, decompress
from parallax.engine.deployment.stored import HostCopies
from parallax.engine.generate import Continuation, Generator
from parallax.engine.layer_formats import Formats
from parallax.models.compressing import layer_config, packed_weights
from parallax.models.config import ModelConfig
from parallax.models.packed_weight import PackedWeight
from parallax.models.transformer import abstract_transformer
from parallax.strategies import data_parallel


def unsharded_params(host: HostCopies, formats: tuple[Formats, ...]) -> nnx.State:
    """Return dense parameters, every layer's matrices decompressed from their formats.

    Raises:
      ValueError: a format is w8a8, which rounds activations too: no dense weight is equivalent.
    """
    if any("w8a8" in pair for pair in formats):
        raise ValueError(
            "unsharded_params: w8a8 rounds activations: no dense weight is equivalent."
        )
    layers = [_dense(host.config, host.layer(i, pair), pair) for i, pair in enumerate(formats)]
    flat: dict[tuple, Any] = dict(nnx.to_flat_state(host.dense))
    for path, like in nnx.to_flat_state(abstract_transformer(host.config)[1]):
        if path[0] == "layers":
            flat[path] = like.replace(jnp.concatenate([layer[path] for layer in layers]))
    return nnx.from_flat_state(list(flat.items()))


def unsharded_tokens(
    config: ModelConfig, params: nnx.State, prompts, max_new_tokens: int
) -> tuple[Continuation, ...]:
    """Generate greedy continuations on one device, by `parallax.engine.generate`."""
    strategy = data_parallel(1)
    mesh = strategy.mesh.build(jax.devices()[:1])
    params = jax.device_put(params, jax.devices()[0])
    return Generator(config, strategy, params, mesh)(
        prompts, max_new_tokens=max_new_tokens
    ).continuations


def _dense(config: ModelConfig, stored: nnx.State, pair: Formats) -> dict[tuple, jax.Array]:
    """Return one layer's dense parameters by path, [1, ...] each."""
    packed = packed_weights(layer_config(config, pair))
    held: dict[tuple, Any] = dict(nnx.to_flat_state(nnx.State({"layers": stored})))
    dense = {}
    for path, _ in nnx.to_flat_state(abstract_transformer(config)[1]):
        if path in packed:
            parts = [held.get((*path, name)) for name in Packed._fields]
            dense[path] = _decompressed(parts, packed[path], config.dtype)
        elif path[0] == "layers":
            dense[path] = jnp.asarray(held[path][...])
    return dense


def _decompressed(parts, layout: PackedWeight, dtype: str) -> jax.Array:
    stack = Packed(*(None if x is None else jnp.asarray(x[...]) for x in parts))
    return jax.vmap(lambda p: decompress(p, layout.form, layout.inputs[-1], dtype))(stack)
