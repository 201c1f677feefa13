"""The transformer: tables, stacked blocks under a scan, unembedding.

Strategies run its three parts (`embed`, `blocks`, `head`) on local shards; `__call__` runs them
unsplit. Shapes: B batch, L tokens, D model width, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Num

from parallax.kernels.ring_attention.reference import capped
from parallax.models.block import Block
from parallax.models.config import ModelConfig
from parallax.models.layer_kinds import LayerKind
from parallax.models.layer_scan import scan_by_index, scan_layers
from parallax.models.norms import Norm
from parallax.models.rope import Rotation, rotation, token_positions
from parallax.models.tiled import Cached, own_of, tiled_layers
from parallax.models.weights import gathered, gathered_weight, in_use, weight
from parallax.parallel.cached_attention import CachedLayers
from parallax.parallel.fused_cross_entropy import summed_cross_entropy
from parallax.parallel.remat import rematerialised
from parallax.parallel.split import RESIDUAL_SEQ, UNSPLIT, Split
from parallax.parallel.tiles import MicrobatchGroup
from parallax.rules import embed_axes


class Transformer(nnx.Module):
    """A transformer made from a ModelConfig.

    Args:
      config: sizes and choices.
      rngs: a stream named "params".

    Every parameter carries its logical axes; blocks are stacked in a leading "layers" dim.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, v = config.d_model, config.vocab_size
        # A tied table is initialised as an unembedding, for logits of about unit size.
        fan_in = d if config.tie_embeddings else 1
        names = None, ("lookup", "embed")
        table = functools.partial(weight, config, rngs, names=names, inputs=())
        self.tokens_VD = table((v, d), fan_in=fan_in)
        if config.positions == "learned":
            self.positions_LD = table((config.max_seq_len, d), fan_in=1)
        if config.dense_layers:
            self.first_layers = _stack(config.of_dense_layers, rngs, None)
        self.layers = _stack(config, rngs, "layers")
        self.final_norm = Norm(config)
        if not config.tie_embeddings:
            self.unembed_DV = weight(config, rngs, (d, v), ("embed", "vocab"), d)

    def embed(
        self, tokens_BL: Int[Array, "b l"], segment_ids_BL: Int[Array, "b l"] | None, split: Split
    ) -> Float[Array, "b l d"]:
        """Look up this device's tokens in the tables, at its share of the width.

        They pass the dense first layers too, which all stages of a pipeline run; where keys and
        values are cached, `blocks` runs these layers.

        Args:
          tokens_BL, segment_ids_BL: whole sequences; here each device selects its own tokens.
          split: how the model is split.

        Returns:
          [B, L / seq, D / lookup].
        """
        seq_len = tokens_BL.shape[1]
        mine = split.residual_positions(seq_len)
        positions = jnp.take(token_positions(seq_len, segment_ids_BL), mine, axis=1)
        x = self.look_up(jnp.take(tokens_BL, mine, axis=1), positions, split)
        if not self.config.dense_layers or split.kv is not None:
            return x
        mine = split.positions(seq_len)
        positions = jnp.take(token_positions(seq_len, segment_ids_BL), mine, axis=1)
        segments = None if segment_ids_BL is None else jnp.take(segment_ids_BL, mine, axis=1)
        with jax.named_scope("first_layers"):
            x = split.gather_width(x)
            x, _ = self._through(self.first_layers, x, positions, split, segments)
            return split.shard_width(x)

    def look_up(
        self, tokens_BL: Int[Array, "b l"], positions_BL: Int[Array, "#b l"], split: Split
    ) -> Float[Array, "b l d"]:
        """Look up this device's tokens, at its positions, in the tables: [B, L, D / lookup]."""
        x = split.rows_of(self.tokens_VD[...], tokens_BL, self.config.dtype)
        if self.config.embed_scale is not None:
            x = x.astype(self.config.dtype)
            x = x * jnp.asarray(self.config.embed_scale, self.config.dtype)
        if self.config.positions == "learned":
            x = x + split.rows_of(self.positions_LD[...], positions_BL, self.config.dtype)
        x = x.astype(self.config.dtype)
        return split.assert_sharding(x, "act_batch", RESIDUAL_SEQ, "lookup")

    def blocks(
        self,
        x_BLD: Float[Array, "b l d"],
        segment_ids_BL: Int[Array, "b l"] | None,
        split: Split,
        seq_len: int,
        expert_ids_NBLk: Int[Array, "n b l k"] | None = None,
        round: MicrobatchGroup | None = None,
    ) -> tuple[Float[Array, "b l d"], Any]:
        """Run local activations through the layers that this device holds.

        Args:
          x_BLD: this device's tokens.
          segment_ids_BL: segment ids of whole sequences.
          split: how the model is split.
          seq_len: tokens in a whole sequence.
          expert_ids_NBLk: fixed routing of whole sequences in this device's layers.
          round: the microbatch group that x holds, to run weight tile by weight tile; see
            `through_weight_tiles`.

        Returns:
          [B, L, D], and the layers' router statistics, stacked; () without experts.

        Weights wider than `config.dtype` (a training step's) are cast one layer at a time.
        """
        mine = split.positions(seq_len)
        positions = jnp.take(token_positions(seq_len, segment_ids_BL), mine, axis=1)
        segments = None if segment_ids_BL is None else jnp.take(segment_ids_BL, mine, axis=1)
        if round is not None:
            return self.through_weight_tiles(x_BLD, positions, split, round, segments)
        ids = None if expert_ids_NBLk is None else jnp.take(expert_ids_NBLk, mine, axis=2)
        return self.through_layers(x_BLD, positions, split, segments, ids)

    def through_layers(
        self,
        x_BLD: Float[Array, "b l d"],
        positions_BL: Int[Array, "#b l"],
        split: Split,
        segment_ids_BL: Int[Array, "b l"] | None = None,
        expert_ids_NBLk: Int[Array, "n b l k"] | None = None,
        cache: CachedLayers | None = None,
    ) -> tuple[Float[Array, "b l d"], Any]:
        """Run `blocks` on positions, segment ids and choices that are already this device's own.

        Args:
          x_BLD, positions_BL, split, segment_ids_BL, expert_ids_NBLk: as in `blocks`.
          cache: the cache of these layers; x is then one new token per sequence, [B, 1, D].
        """
        offset = self.config.dense_layers if split.kv is not None else 0

        def through(block: Block, x_BLD, ids=None, offset: int = 0):
            return self._through(
                block, x_BLD, positions_BL, split, segment_ids_BL, ids, cache, offset
            )

        if not offset:
            return through(self.layers, x_BLD, expert_ids_NBLk)
        # Every stage runs and caches the dense first layers; only the first goes on from them.
        with jax.named_scope("first_layers"):
            y_BLD, (_, first) = through(self.first_layers, x_BLD)
        if stages := split.over("layers"):
            y_BLD = jnp.where(lax.axis_index(stages) == 0, y_BLD, x_BLD)
        x_BLD, (stats, kv) = through(self.layers, y_BLD, expert_ids_NBLk, offset)
        return x_BLD, (stats, jax.tree.map(lambda *x: jnp.concatenate(x), first, kv))

    def _through(
        self, block: Block, x_BLD: jax.Array, positions_BL: jax.Array, split: Split,
        segment_ids_BL=None, expert_ids_NBLk=None, cache: CachedLayers | None = None,
        offset: int = 0,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        """Run one stack of layers, whose rows of the cache start at `offset`."""
        config, kinds = self.config, self.config.kinds
        angles = {kind: self.angles(positions_BL, kind, split) for kind in kinds}
        graph, stacked = nnx.split(block)
        depth = len(jax.tree.leaves(stacked)[0])
        kv = None if cache is None else (cache.keys, cache.values)
        rows = stacked, expert_ids_NBLk, kv
        is_part = cache is not None and len(cache.keys) != depth

        def layer(x, row, kind: LayerKind):
            state, expert_ids, kv = row
            state = in_use(state, config.dtype, split, stacked=True)
            own = None if cache is None else cache.of_layer(kv[0], kv[1], kind.window)
            return nnx.merge(graph, state)(
                x, angles[kind], segment_ids_BL, split, expert_ids, own, kind=kind
            )

        def run(x, row, kind: LayerKind):
            of_kind = functools.partial(layer, kind=kind)
            return (of_kind if split.remat is None else rematerialised(of_kind, split.remat))(
                x, row
            )

        if is_part or (split.remat is None and len(kinds) > 1):
            # Without a gradient layers are picked by index, which copies none of them.
            def picked(x, index, kind: LayerKind):
                # Otherwise XLA picks the rows of a group's layers together, and writes them out.
                (weights, ids, cached), x = lax.optimization_barrier((rows, x))
                own = jax.tree.map(lambda r: _row(r, index), (weights, ids))
                cached = jax.tree.map(lambda r: _row(r, offset + index), cached)
                return run(x, (*own, cached), kind)

            return scan_by_index(picked, x_BLD, depth, kinds)
        return scan_layers(run, x_BLD, rows, kinds)

    def through_weight_tiles(
        self,
        x_BLD: Float[Array, "b l d"],
        positions_BL: Int[Array, "#b l"],
        split: Split,
        round: MicrobatchGroup,
        segment_ids_BL: Int[Array, "b l"] | None = None,
        cached: Cached | None = None,
    ) -> tuple[Float[Array, "b l d"], Any]:
        """Run `through_layers` on all microbatches of a group, in the order of `tiled_layers`.

        Returns:
          [B, L, D], and the layers' other results, leaves with a leading microbatch and layer.
        """
        angles = {kind: self.angles(positions_BL, kind, split) for kind in self.config.kinds}
        own = own_of(angles, segment_ids_BL, round.microbatches)
        x_RBLD = x_BLD.reshape(round.microbatches, -1, *x_BLD.shape[1:])
        x_RBLD, beside = tiled_layers(
            self.layers, self.config, x_RBLD, own, split, round.tiles, cached
        )
        return x_RBLD.reshape(x_BLD.shape), beside

    def angles(
        self, positions_BL: Int[Array, "#b l"], kind: LayerKind, split: Split
    ) -> Rotation | None:
        """Return the rotation of queries and keys at these positions in one kind of layers."""
        config = self.config
        if config.positions != "rope" or not kind.rotates:
            return None
        theta, scaling = config.rope_theta, config.rope_scaling
        if kind.rope_theta is not None:
            theta, scaling = kind.rope_theta, kind.rope_scaling
        if config.latent is not None:  # whose heads are whole on every device
            width = config.latent.rope_dim
            return rotation(positions_BL, width, theta, config.dtype, UNSPLIT, scaling)
        return rotation(
            positions_BL, config.head_dim, theta, config.dtype, split, scaling, config.rotary_dim
        )

    def head(self, x_BD: Float[Array, "*b d"], split: Split) -> Float[Array, "*b v"]:
        """Return the logits of this device's share of the vocabulary."""
        with jax.named_scope("head"):
            norm, unembed_DV = self._end(x_BD, split)
            unembed_DV = unembed_DV.astype(self.config.dtype)
            logits_BV = jnp.einsum("...d,dv->...v", norm(x_BD), unembed_DV)
            logits_BV = capped(logits_BV, self.config.logit_cap)
            return _mask_padding(logits_BV, self.config.vocab_size, split)

    def summed_loss(
        self,
        x_BD: Float[Array, "*b d"],
        labels_B: Int[Array, "*b"],
        weights_B: Num[Array, "*b"],
        split: Split,
    ) -> Float[Array, ""]:
        """Return the weighted sum of this device's tokens' cross-entropies; no logits are kept.

        Args:
          x_BD, labels_B, weights_B: the residual stream after the last layer, token ids, and
            numbers or booleans.
          split: how the model is split.

        Returns:
          A scalar, as of `summed_cross_entropy`.

        Cost: as of `summed_cross_entropy`.
        """
        with jax.named_scope("head"):
            norm, unembed_DV = self._end(x_BD, split)
            return summed_cross_entropy(
                norm(x_BD), unembed_DV, labels_B, weights_B, self.config.vocab_size,
                split.over("vocab"), cap=self.config.logit_cap,
            )  # fmt: skip

    def _end(self, x_BD: jax.Array, split: Split) -> tuple[Norm, jax.Array]:
        """Return the last norm, and the unembedding: in the model's dtype if it is gathered."""
        norm = gathered(self.final_norm, split, x_BD)
        if self.config.tie_embeddings:
            return norm, self.tokens_VD[...].T
        w = self.unembed_DV
        if embed_axes(w.out_sharding, split.axes):
            w = w.replace(w[...].astype(self.config.dtype))
        return norm, gathered_weight(w, split, x=x_BD)[...]

    def run(
        self,
        tokens_BL: Int[Array, "b l"],
        segment_ids_BL: Int[Array, "b l"] | None = None,
        split: Split = UNSPLIT,
        expert_ids_NBLk: Int[Array, "n b l k"] | None = None,
    ) -> tuple[Float[Array, "b l v"], Any]:
        """Return every position's logits on one device, and each layer's router statistics."""
        x = self.embed(tokens_BL, segment_ids_BL, split)
        x, stats = self.blocks(x, segment_ids_BL, split, tokens_BL.shape[1], expert_ids_NBLk)
        return self.head(x, split), stats

    def __call__(
        self, tokens_BL: Int[Array, "b l"], segment_ids_BL: Int[Array, "b l"] | None = None
    ) -> Float[Array, "b l v"]:
        """Return the logits of every position, [B, L, V], on one device."""
        return self.run(tokens_BL, segment_ids_BL)[0]


@functools.lru_cache(maxsize=64)
def abstract_transformer(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Return the graph and shapes of a Transformer, without making its parameters."""
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(params=0)))
        return nnx.split(model)


def _row(x: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _mask_padding(logits_BV: jax.Array, vocab_size: int, split: Split) -> jax.Array:
    """Set the logits of a vocabulary's padding columns to -inf."""
    shards, local = split.count("vocab"), logits_BV.shape[-1]
    if shards * local == vocab_size:
        return logits_BV
    first = lax.axis_index(split.over("vocab")) * local
    column = (first + jnp.arange(local, dtype=jnp.int32)).reshape(
        (1,) * (logits_BV.ndim - 1) + (-1,)
    )
    return jnp.where(column < vocab_size, logits_BV, -jnp.inf)


def _stack(config: ModelConfig, rngs: nnx.Rngs, axis: str | None) -> Block:
    """Make the stacked blocks as one, each parameter with a leading dim of this logical axis."""

    @nnx.split_rngs(splits=config.stacked_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: axis})
    def make(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs=rngs)

    return make(rngs)
