"""Multi-head latent attention: keys and values of all heads are made from one latent per token.

Two forms compute one function. Expanded: keys and values of every head are made from the latents,
and attention is ordinary. Absorbed: the matrix that would make a head's keys multiplies its query
instead, the query attends to the latents themselves, and the matrix that would make the values
multiplies the result. Whole sequences are expanded, which needs fewer FLOPs; where keys travel or
are cached they are latents, kv_rank + rope_dim elements per token and layer for all heads.

Shapes: B batch, L tokens, D model width, H heads, K head_dim (of them P rotated by position), V
width of a head's values, R rank of the queries' latent, C kv_rank, T = C + P.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.models.config import ModelConfig
from parallax.models.layer_kinds import LayerKind
from parallax.models.packed_weight import factor, multiplied
from parallax.models.rope import Rotation, rotate
from parallax.models.weights import weight
from parallax.parallel.attention_part import AttentionShape
from parallax.parallel.cached_attention import CachedLayer
from parallax.parallel.scoring import Scoring
from parallax.parallel.split import Split

HEADS = "heads", "head_dim"
# Every device of an axis that splits heads has a copy of the latents.
KV_HEADS = "act_kv_heads", "head_dim"


class LatentNorm(nnx.Module):
    """The RMSNorm over a latent's width, with a learned scale; it computes in float32 or wider."""

    def __init__(self, width: int, config: ModelConfig):
        self.epsilon = config.norm_epsilon
        self.scale = nnx.Param(jnp.ones((width,), config.dtype), out_sharding=(None,))

    def __call__(self, x_BLC: jax.Array) -> jax.Array:
        wide = jnp.float64 if x_BLC.dtype == jnp.float64 else jnp.float32
        y = x_BLC.astype(wide)
        y = y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...].astype(wide)[None, None]).astype(x_BLC.dtype)


class LatentAttention(nnx.Module):
    """Multi-head latent attention of `config.latent`, in place of `Attention`.

    The head of a query or key is its part that is not rotated, then the rotated one; the rotated
    part of the keys is one for all heads.

    Devices that split the heads each make all latents, as they would make whole key/value heads
    that several of them read (`Split.match_kv_heads`). Mesh axes that split head_dim split the
    heads further.

    Cost: per pair of tokens and head 2 (K + V) FLOPs expanded, 2 (T + C) absorbed; products with
      weights are as many in both. A ring sends T elements per token. Ulysses exchanges expanded
      heads, H (2 K + 2 V) elements per token, and absorbed ones, H (T + C), only around a ring. A
      cache holds T elements per token and layer on every device that splits the heads.

    Reference: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        assert config.latent is not None
        sizes = config.latent
        self.config, self.sizes = config, sizes
        d, h, k, c = config.d_model, config.num_heads, config.head_dim, sizes.kv_rank
        matrix = functools.partial(weight, config, rngs, part="attention")
        # A rank is named as the model width is, so that these matrices are sharded alike.
        of_heads = "embed", HEADS, None
        if sizes.q_rank is None:
            self.q_DHK = matrix((d, h, k), of_heads, d)
        else:
            self.qa_DR = matrix((d, sizes.q_rank), ("embed", None), d)
            self.qa_norm = LatentNorm(sizes.q_rank, config)
            self.q_RHK = matrix((sizes.q_rank, h, k), of_heads, sizes.q_rank)
        self.kva_DT = matrix((d, sizes.cached), ("embed", None), d)
        self.kva_norm = LatentNorm(c, config)
        self.kb_CHK = matrix((c, h, k - sizes.rope_dim), of_heads, c)
        self.vb_CHV = matrix((c, h, sizes.value_dim), of_heads, c)
        inputs = h * sizes.value_dim
        self.out_HVD = matrix((h, sizes.value_dim, d), (HEADS, None, "embed"), inputs,
                              inputs=(0, 1))  # fmt: skip

    @property
    def output(self):
        """The output matrix [H, V, D]."""
        return self.out_HVD

    def __call__(
        self, x_BLD, angles: Rotation | None, segment_ids_BL, split: Split, kind: LayerKind,
        cache: CachedLayer | None = None,
    ):  # fmt: skip
        """Return (attention's output [B, L, D], (these tokens' latents, None) for a cache)."""
        q_BLHK, latent_BL1T = self.project(x_BLD, angles, split)
        out_BLHV, kv = self.attend(q_BLHK, latent_BL1T, segment_ids_BL, split, kind, cache)
        y_BLD = split.contract(out_BLHV, factor(self.out_HVD, split), "blhv,hvd->bld", over=HEADS)
        return self.with_bias(y_BLD, split), kv

    def with_bias(self, y_BLD, split: Split):
        """Return the sum over heads: it has no bias."""
        return y_BLD

    def project(self, x_BLD, angles: Rotation | None, split: Split):
        """Return queries [B, L, H, K] and latents [B, L, 1, T], normed and rotated."""
        sizes = self.sizes
        if sizes.q_rank is None:
            q_BLHK = multiplied(x_BLD, self.q_DHK, "bld,dhk->blhk", split)
        else:
            a_BLR = self.qa_norm(multiplied(x_BLD, self.qa_DR, "bld,dr->blr", split))
            q_BLHK = multiplied(a_BLR, self.q_RHK, "blr,rhk->blhk", split)
        latent_BLT = multiplied(x_BLD, self.kva_DT, "bld,dt->blt", split)
        c_BLC, rope_BLP = jnp.split(latent_BLT, (sizes.kv_rank,), axis=-1)
        rope_BL1P = rotate(rope_BLP[:, :, None], angles)
        latent_BL1T = jnp.concatenate([self.kva_norm(c_BLC)[:, :, None], rope_BL1P], axis=-1)
        plain_BLHK, rope_BLHP = jnp.split(q_BLHK, (-sizes.rope_dim,), axis=-1)
        q_BLHK = jnp.concatenate([plain_BLHK, rotate(rope_BLHP, angles)], axis=-1)
        split.assert_sharding(q_BLHK, "act_batch", "act_seq", ("act_heads", "head_dim"), ())
        split.assert_sharding(latent_BL1T, "act_batch", "act_seq", KV_HEADS, ())
        return q_BLHK, latent_BL1T

    def attend(self, q_BLHK, latent_BL1T, segment_ids_BL, split: Split, kind: LayerKind,
               cache: CachedLayer | None = None):  # fmt: skip
        """Return (heads' outputs [B, L, H, V], (latents, None) to be cached)."""
        width, scoring = self.sizes.kv_rank, latent_scoring(self.config, kind)
        if cache is not None:
            out_BLHC, kv = split.attend_cached(
                self.absorbed(q_BLHK, split),
                latent_BL1T,
                None,
                cache,
                scoring=scoring,
                value_dim=width,
            )
            return self.values(out_BLHC, split), kv
        rest: dict[str, Any] = {"scoring": scoring, "segment_ids": segment_ids_BL}
        rest["whole_heads"] = bool(split.attention.slice_axes)
        if split.attention.keys_travel:
            q_BLHT = self.absorbed(q_BLHK, split)
            out_BLHC = split.attend(q_BLHT, latent_BL1T, None, value_dim=width, **rest)
            return self.values(out_BLHC, split), (latent_BL1T, None)
        return split.attend(q_BLHK, *self.expanded(latent_BL1T, split), **rest), (latent_BL1T, None)

    def expanded(self, latent_BL1T, split: Split):
        """Return the heads' keys [B, L, H, K] and values [B, L, H, V]."""
        c_BLC, rope_BLP = jnp.split(latent_BL1T[:, :, 0], (self.sizes.kv_rank,), axis=-1)
        k_BLHK = multiplied(c_BLC, self.kb_CHK, "blc,chk->blhk", split)
        rope_BLHP = jnp.broadcast_to(rope_BLP[:, :, None], (*k_BLHK.shape[:3], self.sizes.rope_dim))
        values = self.values(c_BLC[:, :, None], split)
        return jnp.concatenate([k_BLHK, rope_BLHP], axis=-1), values

    def absorbed(self, q_BLHK, split: Split):
        """Return queries of latents [B, L, H, T]: their scores are those of q and expanded keys."""
        plain_BLHK, rope_BLHP = jnp.split(q_BLHK, (-self.sizes.rope_dim,), axis=-1)
        q_BLHC = multiplied(plain_BLHK, self.kb_CHK, "blhk,chk->blhc", split)
        return jnp.concatenate([q_BLHC, rope_BLHP], axis=-1)

    def values(self, c_BLHC, split: Split):
        """Return the heads' values [B, L, H, V] of latents, or of sums of latents, for each head.

        One latent for all heads is [B, L, 1, C].
        """
        if c_BLHC.shape[2] == 1:
            return multiplied(c_BLHC[:, :, 0], self.vb_CHV, "blc,chv->blhv", split)
        return multiplied(c_BLHC, self.vb_CHV, "blhc,chv->blhv", split)


def latent_scoring(config: ModelConfig, kind: LayerKind) -> Scoring:
    """Return the rule of a layer's scores, whose scale is that of heads, not of latents."""
    scale = config.head_dim**-0.5 if config.score_scale is None else config.score_scale
    return Scoring(config.causal, kind.window, scale, config.score_cap)


def latent_shape(
    config: ModelConfig, split: Split, batch: int, seq_len: int, *, packed: bool, kind: LayerKind,
    cached: bool,
) -> AttentionShape:  # fmt: skip
    """Return the sizes of one call of latent attention, as of `attention_shape`."""
    assert config.latent is not None
    sizes, heads = config.latent, config.num_heads // split.count(*HEADS)
    rest: dict[str, Any] = {
        "item_bytes": config.item_bytes, "packed": packed, "scoring": latent_scoring(config, kind),
        "whole_heads": bool(split.attention.slice_axes),
    }  # fmt: skip
    if cached or split.attention.keys_travel:
        return AttentionShape(
            batch, seq_len, heads, 1, sizes.cached, value_dim=sizes.kv_rank, shared_values=True,
            **rest,
        )  # fmt: skip
    return AttentionShape(
        batch, seq_len, heads, heads, config.head_dim, value_dim=sizes.value_dim, **rest
    )
