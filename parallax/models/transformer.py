"""The transformer: tables, stacked blocks under scan, unembedding.

Its three parts (`embed`, `blocks`, `head`) are what strategies run on local shards; `__call__` runs
them unsplit. Shapes: B batch, L tokens, D model width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from parallax.models.block import Block, weight
from parallax.models.config import ModelConfig
from parallax.models.norms import Norm
from parallax.models.rope import Rotation, rotation, token_positions
from parallax.parallel.split import RESIDUAL_SEQ, UNSPLIT, Split


class Transformer(nnx.Module):
    """A dense transformer made from a ModelConfig.

    Args:
      config: sizes and choices.
      rngs: a stream named "params".

    Every parameter carries its logical axes; blocks are stacked in a leading "layers" dim.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, v, dtype = config.d_model, config.vocab_size, config.dtype
        self.tokens_VD = weight(rngs, (v, d), (None, "lookup"), 1, dtype)
        if config.positions == "learned":
            self.positions_LD = weight(rngs, (config.max_seq_len, d), (None, "lookup"), 1, dtype)
        self.layers = _stack(config, rngs)
        self.final_norm = Norm(config)
        self.unembed_DV = weight(rngs, (d, v), ("embed", "vocab"), d, dtype)

    def embed(
        self, tokens_BL: Int[Array, "b l"], segment_ids_BL: Int[Array, "b l"] | None, split: Split
    ) -> Float[Array, "b l d"]:
        """Rows of the tables for this device's tokens, at its share of the width.

        Args:
          tokens_BL, segment_ids_BL: whole sequences; a device picks its own tokens, once, here.

        Returns:
          [B, L / seq, D / lookup].
        """
        seq_len = tokens_BL.shape[1]
        mine = split.residual_positions(seq_len)
        x = jnp.take(self.tokens_VD[...], jnp.take(tokens_BL, mine, axis=1), axis=0)
        if self.config.positions == "learned":
            positions = jnp.take(token_positions(seq_len, segment_ids_BL), mine, axis=1)
            x = x + jnp.take(self.positions_LD[...], positions, axis=0)
        return split.declare(x, "act_batch", RESIDUAL_SEQ, "lookup")

    def blocks(
        self,
        x_BLD: Float[Array, "b l d"],
        segment_ids_BL: Int[Array, "b l"] | None,
        split: Split,
        seq_len: int,
    ) -> Float[Array, "b l d"]:
        """Through the layers this device holds; whole-sequence segment ids, local activations."""
        mine = split.positions(seq_len)
        angles: Rotation | None = None
        if self.config.positions == "rope":
            positions = jnp.take(token_positions(seq_len, segment_ids_BL), mine, axis=1)
            config = self.config
            angles = rotation(positions, config.head_dim, config.rope_theta, config.dtype, split)
        segments = None if segment_ids_BL is None else jnp.take(segment_ids_BL, mine, axis=1)
        graph, stacked = nnx.split(self.layers)

        def layer(x, state):
            return nnx.merge(graph, state)(x, angles, segments, split), None

        return lax.scan(layer, x_BLD, stacked)[0]

    def head(self, x_BD: Float[Array, "*b d"], split: Split) -> Float[Array, "*b v"]:
        """Logits of this device's share of the vocabulary."""
        with jax.named_scope("head"):
            return jnp.einsum("...d,dv->...v", self.final_norm(x_BD), self.unembed_DV[...])

    def __call__(
        self,
        tokens_BL: Int[Array, "b l"],
        segment_ids_BL: Int[Array, "b l"] | None = None,
        split: Split = UNSPLIT,
    ) -> Float[Array, "b l v"]:
        """Logits of every position, [B, L, V], on one device."""
        x = self.embed(tokens_BL, segment_ids_BL, split)
        x = self.blocks(x, segment_ids_BL, split, tokens_BL.shape[1])
        return self.head(x, split)


def _stack(config: ModelConfig, rngs: nnx.Rngs) -> Block:
    """`num_layers` blocks as one, each parameter with a leading "layers" dim."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def make(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs=rngs)

    return make(rngs)
