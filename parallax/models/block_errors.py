"""The error of a block's output when its matrices are quantized or sparse."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.models.compressing import compress_params, layer_config
from parallax.models.config import ModelConfig
from parallax.models.transformer import abstract_transformer
from parallax.models.weights import cast
from parallax.parallel.split import UNSPLIT

Formats = tuple[str, str]


def block_error(
    config: ModelConfig, dense: nnx.State, formats: Formats, x_BLD: jax.Array
) -> tuple[float, jax.Array]:
    """Return the relative L2 error of a compressed block's output, and the dense block's output.

    The output includes the residual stream, and both blocks get the same input.

    Args:
      config: the model, without `compression`.
      dense: the layer's parameters, each with a leading dim of 1.
      formats: the formats of attention and MLP; with w8a8 the block rounds activations too.
      x_BLD: the dense block's input, [B, L, D].

    Returns:
      ||stored(x) - dense(x)|| / ||dense(x)||, both computed in float32 (float64 for float64), and
      dense(x) in that dtype.

    Raises:
      ValueError: sizes that a format cannot store.

    Cost: memory for one dense layer in float32, twice, besides the compressed one.
    """
    error, y_BLD = _compared(config, formats)(dense, x_BLD)
    return float(error), y_BLD


def random_input(config: ModelConfig, tokens: int = 64, seed: int = 0) -> jax.Array:
    """Return normal noise [1, tokens, D], every token of unit RMS, in float32 or wider."""
    x_BLD = jax.random.normal(jax.random.key(seed), (1, tokens, config.d_model), _wide(config))
    return x_BLD * jax.lax.rsqrt(jnp.mean(x_BLD**2, axis=-1, keepdims=True))


def _wide(config: ModelConfig) -> str:
    return "float64" if config.dtype == "float64" else "float32"


@functools.lru_cache(maxsize=64)
def _compared(config: ModelConfig, formats: Formats):
    one, stored = config.replace(num_layers=1), layer_config(config, formats)

    def output(config: ModelConfig, layer: nnx.State, x_BLD):
        # Arithmetic is wide; the stored weights were rounded from the model's own dtype.
        config = config.replace(dtype=_wide(config))
        graph, shapes = abstract_transformer(config)
        model = nnx.merge(graph, nnx.State({**shapes, "layers": cast(layer, config.dtype)}))
        positions_BL = jnp.arange(x_BLD.shape[1], dtype=jnp.int32)[None]
        return model.through_layers(x_BLD, positions_BL, UNSPLIT)[0]

    def compared(dense: nnx.State, x_BLD):
        packed = dense
        if stored.compression is not None:
            packed = compress_params(nnx.State({"layers": dense}), stored)["layers"]
        x_BLD = x_BLD.astype(_wide(config))
        y_BLD = output(one, dense, x_BLD)
        off = output(stored, packed, x_BLD) - y_BLD
        return jnp.linalg.norm(off) / jnp.linalg.norm(y_BLD), y_BLD

    return jax.jit(compared)
