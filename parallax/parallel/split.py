"""The split of one forward pass, which model code uses instead of naming mesh axes.

Inside the one `shard_map`, arrays are local shards and layer code names logical axes only. The same
code runs unsplit with `UNSPLIT`, in which no axis is split. Shapes: B batch, L tokens, D model
width, H heads, G key/value heads, K head_dim.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.attention_parts import AttentionPart, Local
from parallax.parallel.cached_attention import CachedLayer, KvLayout, cached_attention
from parallax.parallel.experts import ExpertPart, LocalExperts, Platform
from parallax.parallel.products import Int8Weight, StoredWeight, product
from parallax.parallel.remat import Remat, product_result
from parallax.parallel.scoring import Scoring
from parallax.parallel.sharded_weights import RowPath, exchange_rows, gather_shards, row_path
from parallax.parallel.varying import vary_over, varying_axes
from parallax.parallel.width import gather_width, shard_width

# A dim's logical axis, several that split it in turn, or None.
Name = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Split:
    """The mesh axes of every logical axis in one phase, and the strategy's parts.

    Attributes:
      axes: logical axis -> mesh axes; a missing name is not split.
      mesh_axes: mesh axis -> size.
      attention: how attention crosses devices.
      experts: how tokens reach their experts.
      reduce_dtype: dtype in which partial sums cross the wire; None is the activations' own.
      remat: what the backward pass of each layer recomputes; None where there is none.
      platform: the program's platform: "gpu" has exchanges that "cpu" emulates.
      record_choices: layers return every token's chosen experts with their statistics.
      kv: the layout of cached keys and values, which layers then return with their statistics;
        None caches nothing.
      decodes: this is a decoding step, whose products read weights in place; see `apart`.
    """

    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mesh_axes: Mapping[str, int] = field(default_factory=dict)
    attention: AttentionPart = Local()
    experts: ExpertPart = field(default_factory=LocalExperts)
    reduce_dtype: str | None = None
    remat: Remat | None = None
    platform: Platform = "cpu"
    record_choices: bool = False
    kv: KvLayout | None = None
    decodes: bool = False

    def replace(self, **changes) -> "Split":
        """Return a copy of this split with some fields changed."""
        return dataclasses.replace(self, **changes)

    def over(self, *names: Name) -> tuple[str, ...]:
        """Return the mesh axes that split these logical axes."""
        flat = [n for name in names for n in ((name,) if isinstance(name, str) else name or ())]
        return tuple(axis for name in flat for axis in self.axes.get(name, ()))

    def count(self, *names: Name) -> int:
        """Return the number of shards that these logical axes are split into."""
        shards = 1
        for axis in self.over(*names):
            shards *= self.mesh_axes[axis]
        return shards

    def contract(
        self, x: jax.Array, w: jax.Array | Int8Weight | StoredWeight, spec: str, *,
        over: str | tuple[str, ...],
    ) -> jax.Array:  # fmt: skip
        """Return `product(x, w, spec)`, summed over devices if contracted dims are split.

        Args:
          x, w: local shards.
          spec: einsum of the local shards; the output is [B, L, D], a term of the residual stream.
          over: the contracted logical axes.

        Returns:
          [B, L, D]; [B, L / n, D] if the residual stream is split over the same mesh axes
          (`act_norm_seq`, Megatron sequence parallelism).

        Cost: an all-reduce of the output over the mesh axes of `over`, or a reduce-scatter.
        """
        names = (over,) if isinstance(over, str) else over
        return self.sum(product(x, w, spec, self.over(*names)), *names)

    def sum(self, y: jax.Array, *names: str) -> jax.Array:
        """Sum a term of the residual stream over the mesh axes that split these logical axes.

        Cost: as in `contract`.
        """
        axes = self.over(*names)
        if not axes:
            return product_result(y)
        dtype = y.dtype
        if self.reduce_dtype is not None:
            y = y.astype(self.reduce_dtype)
        if self.over("act_norm_seq") == axes:
            y = lax.psum_scatter(y, axes, scatter_dimension=1, tiled=True)
        else:
            y = lax.psum(y, axes)
        return product_result(y.astype(dtype))

    def once(self, x: jax.Array, axes: Sequence[str]) -> jax.Array:
        """Return a term that all devices on mesh axes have, once for a sum: zeros on all but one.

        Args:
          x: this device's term, the same as on the other devices of `axes`.
          axes: mesh axes; none change nothing.
        """
        if not axes:
            return x
        return jnp.where(lax.axis_index(tuple(axes)) == 0, x, jnp.zeros_like(x))

    def apart(self, y: jax.Array) -> jax.Array:
        """Return a product's result; in a decoding step, kept apart from what follows.

        A product that a bias or an activation is fused into cannot read its weight in place, in its
        stack of layers: XLA would copy that out in every step.
        """
        return lax.optimization_barrier(y) if self.decodes else y

    @property
    def expert_sums(self) -> tuple[str, ...]:
        """The logical axes over which the outputs of experts are partial sums."""
        return ("mlp",) if self.experts.exchange_axes else ("mlp", "expert")

    def enter(self, x_BLD: jax.Array, *names: str) -> jax.Array:
        """Return the residual stream for a block's matrices: this device's whole sequence piece.

        Args:
          x_BLD: [B, L / norm_seq, D].
          names: logical axes that split the matrices that it is multiplied by.

        Cost: with sequence-parallel norms an all-gather, and backward a reduce-scatter; otherwise
          backward one all-reduce over the mesh axes of `names`, however many matrices follow.
        """
        axes = self.over("act_norm_seq")
        if axes:
            return lax.all_gather(x_BLD, axes, axis=1, tiled=True)
        return vary_over(x_BLD, self.over(*names))

    def gather_weight(
        self, w: jax.Array, axes: tuple[str, ...], dim: int | None, x: jax.Array | None = None
    ) -> jax.Array:
        """Gather a weight that is sharded over `embed`, for use in a layer.

        Args:
          w: a local shard.
          axes, dim: the mesh axes of its `embed` dim, and the dim; none gather nothing.
          x: the activations that use it, where they may be alike over axes that split the tokens.

        Cost: an all-gather, again where a layer is recomputed; backward a reduce-scatter.
        """
        if not axes or dim is None:
            return w
        tokens = self.over("act_batch", "act_seq") if x is None else tuple(varying_axes(x))
        return gather_shards(w, axes, dim, tokens)

    @property
    def row_path(self) -> RowPath:
        """How looked-up rows of tables travel; by default they do not."""
        return row_path(self.over("embed"), self.over("act_batch", "act_seq"))

    def rows_of(self, table_VD: jax.Array, ids_BL: jax.Array, dtype: str) -> jax.Array:
        """Look up rows of a table at this device's share of the width: [B, L, D / lookup].

        Rows that travel do so in `dtype`.

        Cost: see `exchange_rows` if the table is sharded over `embed` too; otherwise nothing.
        """
        return exchange_rows(table_VD, ids_BL, self.row_path, dtype)

    def gather_width(self, x_Bd: jax.Array) -> jax.Array:
        """All-gather local shards of the model width (`lookup`), the last dim, to full width.

        Cost: an all-gather; nothing backward.
        """
        axes = self.over("lookup")
        return gather_width(x_Bd, axes) if axes else x_Bd

    def shard_width(self, x_BD: jax.Array) -> jax.Array:
        """Return this device's local shard of the model width: inverse of `gather_width`.

        Cost: nothing; an all-gather backward.
        """
        axes = self.over("lookup")
        return shard_width(x_BD, axes) if axes else x_BD

    def positions(self, seq_len: int) -> jax.Array:
        """Return the positions of this device's tokens in attention, [L / seq] int32."""
        axes = self.over("act_seq")
        index, length = lax.axis_index(axes) if axes else 0, seq_len // self.count("act_seq")
        return jnp.asarray(self.attention.positions(index, length, self.mesh_axes))

    def residual_positions(self, seq_len: int) -> jax.Array:
        """Return the positions of this device's residual stream, [L / seq / norm_seq] int32."""
        positions = self.positions(seq_len)
        axes = self.over("act_norm_seq")
        if not axes:
            return positions
        length = positions.shape[0] // self.count("act_norm_seq")
        return lax.dynamic_slice_in_dim(positions, lax.axis_index(axes) * length, length)

    def last_token(self, x_BLD: jax.Array, seq_len: int) -> jax.Array:
        """Return the sequence's last position, [B, D], on every device.

        Cost: an all-reduce of [B, D] if the sequence is split.
        """
        last = x_BLD[:, -1]
        axes = self.over("act_seq", "act_norm_seq")
        if not axes:
            return last
        mine = self.residual_positions(seq_len)[-1] == seq_len - 1
        return lax.psum(jnp.where(mine, last, jnp.zeros_like(last)), axes)

    def token_at(self, x_BLD: jax.Array, positions_B: jax.Array, seq_len: int) -> jax.Array:
        """Return one position of each sequence, [B, D], on every device.

        Cost: as in `last_token`.
        """
        mine = self.residual_positions(seq_len)[None, :, None] == positions_B[:, None, None]
        token = jnp.where(mine, x_BLD, jnp.zeros_like(x_BLD)).sum(1)
        axes = self.over("act_seq", "act_norm_seq")
        return lax.psum(token, axes) if axes else token

    def match_kv_heads(self, kv: jax.Array, kv_heads: int, heads: int) -> jax.Array:
        """Return the key/value heads that this device's query heads read, [B, L, G', K].

        If `heads` is split and `kv_heads` is not (fewer key/value heads than devices), every
        device computes all key/value heads and keeps those that its query heads use.
        """
        if self.over("kv_heads") or not self.over("heads"):
            return kv
        local_heads, group = heads // self.count("heads"), heads // kv_heads
        if local_heads % group and group % local_heads:
            raise ValueError(
                f"Split: {local_heads} query heads per device straddle groups of {group} that "
                f"share a key/value head. Split 'heads' over {kv_heads} devices or a multiple that "
                "divides the group."
            )
        first = lax.axis_index(self.over("heads")) * local_heads // group
        return lax.dynamic_slice_in_dim(kv, first, max(1, local_heads // group), axis=2)

    def attend(
        self, q, k, v, *, scoring: Scoring, segment_ids=None, sinks=None,
        value_dim: int | None = None, whole_heads: bool = False,
    ) -> jax.Array:  # fmt: skip
        """Return attention's output for this device's query heads and tokens, [B, L, H, V]."""
        with jax.named_scope("attention_core"):
            return self.attention.attend(
                q, k, v, scoring=scoring, segment_ids=segment_ids, sinks=sinks,
                value_dim=value_dim, whole_heads=whole_heads,
            )  # fmt: skip

    def attend_cached(
        self, q, k, v, cache: CachedLayer, *, scoring: Scoring, sinks=None,
        value_dim: int | None = None,
    ):  # fmt: skip
        """Return attention of one new token per sequence, and its keys and values to cache."""
        assert self.kv is not None
        with jax.named_scope("attention_core"):
            return cached_attention(
                q, k, v, cache, self.kv, scoring=scoring, sinks=sinks, value_dim=value_dim
            )

    def assert_sharding(self, x: jax.Array, *names: str | tuple[str, ...]) -> jax.Array:
        """Assert that an activation differs only over the mesh axes that split its dims.

        Args:
          x: a local shard.
          names: the logical axis of each dim, or several that split it in turn.

        A missing sum over a mesh axis fails here, at trace time, as an extra axis.
        """
        if len(names) != x.ndim:
            raise AssertionError(f"{names} name {len(names)} dims, the array has {x.ndim}")
        flat = [n for name in names for n in ((name,) if isinstance(name, str) else name)]
        allowed = set(self.over("layers", *flat))
        extra = varying_axes(x) & set(self.mesh_axes) - allowed
        if extra:
            raise AssertionError(f"{names} differs over {sorted(extra)}: a sum is missing")
        return x


# The logical axes of the residual stream's token dim: attention's split, then that between blocks.
RESIDUAL_SEQ = ("act_seq", "act_norm_seq")

UNSPLIT = Split()
