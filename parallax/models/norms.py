"""RMSNorm and LayerNorm over the model width, in float32 or wider."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from parallax.models.config import ModelConfig


class Norm(nnx.Module):
    """`config.norm` over the last dim, with a learned scale (and shift for LayerNorm)."""

    def __init__(self, config: ModelConfig):
        self.kind, self.epsilon = config.norm, config.norm_epsilon
        ones = jnp.ones((config.d_model,), config.dtype)
        self.scale = nnx.Param(ones, out_sharding=("embed",))
        if self.kind == "layernorm":
            self.shift = nnx.Param(jnp.zeros_like(ones), out_sharding=("embed",))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        y = x.astype(wide)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        variance = jnp.square(y).mean(-1, keepdims=True)
        y = y / jnp.sqrt(variance + self.epsilon)
        y = y * _row(self.scale[...].astype(wide), y.ndim)
        if self.kind == "layernorm":
            y = y + _row(self.shift[...].astype(wide), y.ndim)
        return y.astype(x.dtype)


def _row(x, ndim):
    return x.reshape((1,) * (ndim - 1) + x.shape)
