"""The norms: RMSNorm and LayerNorm over the model width, RMSNorm over head_dim."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from parallax.models.config import ModelConfig
from parallax.parallel.split import Split


class Norm(nnx.Module):
    """The norm of `config.norm` over the last dim, with learned scale (LayerNorm: and shift).

    It computes in float32 or wider.
    """

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


class HeadNorm(nnx.Module):
    """The RMSNorm of query and key heads over a head_dim that may be split, with learned scales.

    It computes in float32 or wider.
    """

    def __init__(self, config: ModelConfig):
        self.head_dim, self.epsilon = config.head_dim, config.norm_epsilon
        ones = jnp.ones((config.head_dim,), config.dtype)
        self.q_scale_K = nnx.Param(ones, out_sharding=("head_dim",))
        self.k_scale_K = nnx.Param(jnp.array(ones), out_sharding=("head_dim",))

    def __call__(
        self, q: Float[Array, "b l h k"], k: Float[Array, "b l g k"], split: Split
    ) -> tuple[Float[Array, "b l h k"], Float[Array, "b l g k"]]:
        """Return q and k with each head at unit root mean square times its scale.

        Cost: if head_dim is split, an all-reduce of the sums of squares, [B, L, H + G] in
          float32 (float64 for float64 inputs).

        Reference: Henry et al., "Query-Key Normalization for Transformers", 2020, as RMSNorm.
        """
        wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32

        def normed(x, scale_K):
            y = x.astype(wide)
            squares = jnp.square(y).sum(-1, keepdims=True)
            if axes := split.over("head_dim"):
                squares = lax.psum(squares, axes)
            y = y * lax.rsqrt(squares / self.head_dim + self.epsilon)
            return (y * _row(scale_K.astype(wide), y.ndim)).astype(x.dtype)

        return normed(q, self.q_scale_K[...]), normed(k, self.k_scale_K[...])


def _row(x, ndim):
    return x.reshape((1,) * (ndim - 1) + x.shape)
