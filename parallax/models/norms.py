"""The norms: RMSNorm and LayerNorm over the model width, RMSNorm of heads, each or all together."""

import jax
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
        self.has_offset = config.norm_offset
        ones = jnp.ones((config.d_model,), config.dtype)
        scale = jnp.zeros_like(ones) if self.has_offset else ones
        self.scale = nnx.Param(scale, out_sharding=("embed",))
        if self.kind == "layernorm":
            self.shift = nnx.Param(jnp.zeros_like(ones), out_sharding=("embed",))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        y = x.astype(wide)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        variance = jnp.square(y).mean(-1, keepdims=True)
        y = y / jnp.sqrt(variance + self.epsilon)
        y = y * _row(_factor(self.scale, self.has_offset, wide), y.ndim)
        if self.kind == "layernorm":
            y = y + _row(self.shift[...].astype(wide), y.ndim)
        return y.astype(x.dtype)


class HeadNorm(nnx.Module):
    """The RMSNorm of queries and keys, of each head or of all together, with learned scales.

    Heads and head_dim may be split. It computes in float32 or wider.
    """

    def __init__(self, config: ModelConfig):
        self.epsilon, self.has_offset = config.norm_epsilon, config.norm_offset
        self.of_all = config.qk_norm_width == "all"
        k, dtype = config.head_dim, config.dtype
        start = jnp.zeros if self.has_offset else jnp.ones
        if self.of_all:
            heads, kv_heads = config.num_heads, config.num_kv_heads
            self.sizes = heads * k, kv_heads * k
            q_scale, k_scale = start((heads, k), dtype), start((kv_heads, k), dtype)
            self.q_scale_HK = nnx.Param(q_scale, out_sharding=("heads", "head_dim"))
            self.k_scale_GK = nnx.Param(k_scale, out_sharding=("kv_heads", "head_dim"))
        else:
            self.sizes = k, k
            self.q_scale_K = nnx.Param(start((k,), dtype), out_sharding=("head_dim",))
            self.k_scale_K = nnx.Param(start((k,), dtype), out_sharding=("head_dim",))

    def __call__(
        self, q: Float[Array, "b l h k"], k: Float[Array, "b l g k"], split: Split
    ) -> tuple[Float[Array, "b l h k"], Float[Array, "b l g k"]]:
        """Return q and k with each head, or all of them, at unit root mean square times the scale.

        Cost: if head_dim is split, an all-reduce of the sums of squares, [B, L, H + G] in
          float32 (float64 for float64 inputs); of all heads together [B, L, 2], also if heads are.

        Reference: Henry et al., "Query-Key Normalization for Transformers", 2020, as RMSNorm.
        """
        wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
        dims = (-2, -1) if self.of_all else (-1,)

        def normed(x, scale, size, heads):
            y = x.astype(wide)
            squares = jnp.square(y).sum(dims, keepdims=True)
            if axes := split.over(*((heads, "head_dim") if self.of_all else ("head_dim",))):
                squares = lax.psum(squares, axes)
            y = y * lax.rsqrt(squares / size + self.epsilon)
            return (y * _row(_factor(scale, self.has_offset, wide), y.ndim)).astype(x.dtype)

        if self.of_all:
            scales = self.q_scale_HK, self.k_scale_GK
        else:
            scales = self.q_scale_K, self.k_scale_K
        return (
            normed(q, scales[0], self.sizes[0], "heads"),
            normed(k, scales[1], self.sizes[1], "kv_heads"),
        )


def _factor(scale: nnx.Param, has_offset: bool, wide) -> jax.Array:
    """Return the factor of a norm's result, in the wide dtype."""
    factor = scale[...].astype(wide)
    return 1 + factor if has_offset else factor


def _row(x, ndim):
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)
