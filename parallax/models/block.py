"""The transformer block: attention and MLP, each after a norm and added to the residual stream.

Layer code names logical axes; `Split` knows the mesh axes. Shapes: B batch, L tokens, D model
width, H query heads, G key/value heads, K head_dim, F MLP width; inside a split, each is this
device's share.
"""

import functools

import jax
from flax import nnx

from parallax.models.config import ModelConfig
from parallax.models.latent import LatentAttention, latent_shape
from parallax.models.layer_kinds import EVERY_TOKEN, LayerKind
from parallax.models.moe import Moe
from parallax.models.norms import HeadNorm, Norm
from parallax.models.packed_weight import factor, multiplied
from parallax.models.rope import Rotation, rotate
from parallax.models.weights import bias, weight
from parallax.parallel.attention_part import AttentionShape
from parallax.parallel.cached_attention import CachedLayer
from parallax.parallel.gates import gated
from parallax.parallel.scoring import Scoring
from parallax.parallel.split import RESIDUAL_SEQ, Split


class Attention(nnx.Module):
    """Multi-head or grouped-query attention: projections, attention and the output matrix."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, h, g, k = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        names = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        matrix = functools.partial(weight, config, rngs, part="attention")
        self.q_DHK = matrix((d, h, k), names[0], d)
        self.k_DGK = matrix((d, g, k), names[1], d)
        self.v_DGK = matrix((d, g, k), names[1], d)
        self.head_norm = HeadNorm(config) if config.qk_norm else None
        self.out_HKD = matrix((h, k, d), ("heads", "head_dim", "embed"), h * k, inputs=(0, 1))
        if config.bias or config.qkv_bias:
            self.q_bias_HK = bias((h, k), names[0][1:], config.dtype)
            self.k_bias_GK = bias((g, k), names[1][1:], config.dtype)
            self.v_bias_GK = bias((g, k), names[1][1:], config.dtype)
        if config.bias:
            self.out_bias_D = bias((d,), ("embed",), config.dtype)
        if config.sinks:
            self.sinks_H = weight(config, rngs, (h,), ("heads",), 1, inputs=())

    def __call__(
        self, x_BLD, angles: Rotation | None, segment_ids_BL, split: Split, kind: LayerKind,
        cache: CachedLayer | None = None,
    ):  # fmt: skip
        """Return (attention's output [B, L, D], these tokens' keys and values for a cache)."""
        qkv = self.project(x_BLD, angles, split)
        out_BLHK, kv = self.attend(*qkv, segment_ids_BL, split, kind, cache)
        y_BLD = split.contract(
            out_BLHK, factor(self.out_HKD, split), "blhk,hkd->bld", over=("heads", "head_dim")
        )
        return self.with_bias(y_BLD, split), kv

    @property
    def output(self):
        """The output matrix [H, K, D]."""
        return self.out_HKD

    def with_bias(self, y_BLD, split: Split):
        """Add the output bias to the sum over heads, once, after that sum."""
        if not self.config.bias:
            return y_BLD
        return split.apart(y_BLD) + self.out_bias_D[...][None, None]

    def project(self, x_BLD, angles: Rotation | None, split: Split):
        """Return queries [B, L, H, K], keys and values [B, L, G, K], normed and rotated."""
        config = self.config
        q_BLHK = multiplied(x_BLD, self.q_DHK, "bld,dhk->blhk", split)
        k_BLGK = multiplied(x_BLD, self.k_DGK, "bld,dgk->blgk", split)
        v_BLGK = multiplied(x_BLD, self.v_DGK, "bld,dgk->blgk", split)
        if config.bias or config.qkv_bias:
            q_BLHK = q_BLHK + self.q_bias_HK[...][None, None]
            k_BLGK = k_BLGK + self.k_bias_GK[...][None, None]
            v_BLGK = v_BLGK + self.v_bias_GK[...][None, None]
        if self.head_norm is not None:
            q_BLHK, k_BLGK = self.head_norm(q_BLHK, k_BLGK, split)
        q_BLHK, k_BLGK = rotate(q_BLHK, angles), rotate(k_BLGK, angles)
        k_BLGK = split.match_kv_heads(k_BLGK, config.num_kv_heads, config.num_heads)
        v_BLGK = split.match_kv_heads(v_BLGK, config.num_kv_heads, config.num_heads)
        split.assert_sharding(q_BLHK, "act_batch", "act_seq", "act_heads", "head_dim")
        split.assert_sharding(k_BLGK, "act_batch", "act_seq", "act_kv_heads", "head_dim")
        return q_BLHK, k_BLGK, v_BLGK

    def attend(self, q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, split: Split, kind: LayerKind,
               cache: CachedLayer | None = None):  # fmt: skip
        """Return (heads' outputs [B, L, H, K], keys and values to be cached)."""
        scoring = scoring_of(self.config, kind)
        sinks_H = self.sinks_H[...] if self.config.sinks else None
        if cache is not None:
            return split.attend_cached(
                q_BLHK, k_BLGK, v_BLGK, cache, scoring=scoring, sinks=sinks_H
            )
        out_BLHK = split.attend(
            q_BLHK, k_BLGK, v_BLGK, scoring=scoring, segment_ids=segment_ids_BL, sinks=sinks_H
        )
        return out_BLHK, (k_BLGK, v_BLGK)


def scoring_of(config: ModelConfig, kind: LayerKind) -> Scoring:
    """Return the rule of a layer's scores."""
    return Scoring(config.causal, kind.window, config.score_scale, config.score_cap)


def heads_read(config: ModelConfig, split: Split) -> tuple[int, int]:
    """Return a device's query heads, and the key/value heads that they read."""
    heads = config.num_heads // split.count("heads")
    kv_heads = config.num_kv_heads // split.count("kv_heads")
    if split.over("heads") and not split.over("kv_heads"):
        kv_heads = max(1, heads * kv_heads // config.num_heads)  # see Split.match_kv_heads
    return heads, kv_heads


def attention_shape(
    config: ModelConfig, split: Split, batch: int, seq_len: int, *, packed: bool,
    kind: LayerKind = EVERY_TOKEN, cached: bool = False,
) -> AttentionShape:  # fmt: skip
    """Return the sizes of one call of a layer's attention, for the strategy's attention part.

    Args:
      config, split: the model, and how it is split.
      batch: sequences in one call on one device.
      seq_len: tokens in a whole sequence.
      packed: segment ids are given.
      kind: the layer's kind; one that sees all tokens is the largest.
      cached: it is a new token's attention to the cache.
    """
    if config.latent is not None:
        return latent_shape(config, split, batch, seq_len, packed=packed, kind=kind, cached=cached)
    heads, kv_heads = heads_read(config, split)
    return AttentionShape(
        batch, seq_len, heads, kv_heads, config.head_dim, config.item_bytes, packed,
        scoring_of(config, kind),
    )  # fmt: skip


class Mlp(nnx.Module):
    """The MLP: two matrices with GELU, or three with a gate."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        d, f, dtype = config.d_model, config.d_ff, config.dtype
        matrix = functools.partial(weight, config, rngs, part="mlp")
        self.up_DF = matrix((d, f), ("embed", "mlp"), d)
        self.down_FD = matrix((f, d), ("mlp", "embed"), f)
        self.gated = config.mlp == "gated"
        self.gate, self.gate_limit = config.gate, config.gate_limit
        if self.gated:
            self.gate_DF = matrix((d, f), ("embed", "mlp"), d)
        self.has_bias = config.bias
        if config.bias:
            self.up_bias_F = bias((f,), ("mlp",), dtype)
            self.down_bias_D = bias((d,), ("embed",), dtype)
            if self.gated:
                self.gate_bias_F = bias((f,), ("mlp",), dtype)

    def __call__(self, x_BLD, split: Split):
        h_BLF = self.hidden(x_BLD, split)
        y_BLD = split.contract(h_BLF, factor(self.down_FD, split), "blf,fd->bld", over="mlp")
        return self.with_bias(y_BLD, split)

    def with_bias(self, y_BLD, split: Split):
        """Add the output bias to the sum over the MLP's width, once, after that sum."""
        if not self.has_bias:
            return y_BLD
        return split.apart(y_BLD) + self.down_bias_D[...][None, None]

    def hidden(self, x_BLD, split: Split):
        """Return the hidden activations [B, L, F]."""
        h_BLF = multiplied(x_BLD, self.up_DF, "bld,df->blf", split)
        if self.has_bias:
            h_BLF = h_BLF + self.up_bias_F[...][None, None]
        if self.gated:
            gate_BLF = multiplied(x_BLD, self.gate_DF, "bld,df->blf", split)
            if self.has_bias:
                gate_BLF = gate_BLF + self.gate_bias_F[...][None, None]
            h_BLF = gated(h_BLF, gate_BLF, self.gate, self.gate_limit)
        else:
            h_BLF = jax.nn.gelu(h_BLF)
        return split.assert_sharding(h_BLF, "act_batch", "act_seq", "act_mlp")


class Block(nnx.Module):
    """The block: x + attention(norm(x)), then x + mlp(norm(x)) or a mixture of experts.

    `config.norms` may place the norms behind attention and MLP instead, or at both sides.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        before, after = config.norms != "after", config.norms != "before"
        attention = Attention if config.latent is None else LatentAttention
        self.attention_norm = Norm(config) if before else None
        self.attention = attention(config, rngs=rngs)
        self.attention_post_norm = Norm(config) if after else None
        self.mlp_norm = Norm(config) if before else None
        self.mlp_post_norm = Norm(config) if after else None
        if config.num_experts:
            width = config.shared_experts * config.d_ff
            shared = Mlp(config.replace(d_ff=width), rngs=rngs) if width else None
            self.mlp = Moe(config, shared, rngs=rngs)
        else:
            self.mlp = Mlp(config, rngs=rngs)

    def __call__(
        self, x_BLD, angles: Rotation | None, segment_ids_BL, split: Split, expert_ids_BLk=None,
        cache: CachedLayer | None = None, *, kind: LayerKind,
    ):  # fmt: skip
        """Return (the residual stream [B, L, D], the router's statistics or ()).

        If `split.kv` is set, keys and values are cached, and the second is a pair of the statistics
        and them: those of all tokens [B, L, G, K], or with a `cache` those of the new token, as
        `cached_attention` returns them.
        """
        with jax.named_scope("attention"):
            h_BLD = split.enter(normed(self.attention_norm, x_BLD), "heads", "head_dim")
            y_BLD, kv = self.attention(h_BLD, angles, segment_ids_BL, split, kind, cache)
            x_BLD = x_BLD + normed(self.attention_post_norm, y_BLD)
        with jax.named_scope("mlp"):
            h_BLD, stats = split.enter(normed(self.mlp_norm, x_BLD), "mlp", "expert"), ()
            if isinstance(self.mlp, Moe):
                y_BLD, stats = self.mlp(h_BLD, split, expert_ids_BLk)
            else:
                y_BLD = self.mlp(h_BLD, split)
            x_BLD = x_BLD + normed(self.mlp_post_norm, y_BLD)
        x_BLD = split.assert_sharding(x_BLD, "act_batch", RESIDUAL_SEQ, "act_embed")
        return x_BLD, stats if split.kv is None else (stats, kv)


def normed(norm: Norm | None, x: jax.Array) -> jax.Array:
    """Return x after a norm, or x where a block has none."""
    return x if norm is None else norm(x)
