"""The protocol of a strategy's attention part, and the sizes that it works on.

Shapes: B batch, L tokens, H query heads, G key/value heads, K head_dim; inside a split, each is
this device's share.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from parallax.bounds import Transfer
from parallax.kernels.ring_attention import block_size
from parallax.parallel.order import numpy_of
from parallax.parallel.ring_attention import ring_attention
from parallax.parallel.score_blocks import scores_of_blocks
from parallax.parallel.scoring import BIDIRECTIONAL, Scoring

Sizes = Mapping[str, int]  # mesh axis -> size, in mesh order


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of one attention call on one device, before the sequence or head_dim is split.

    Attributes:
      batch: sequences on this device.
      seq_len: tokens in a whole sequence.
      heads, kv_heads: heads on this device, as the part receives them.
      head_dim: the whole width of queries and keys.
      item_bytes: bytes per element of queries, keys and values.
      packed: segment ids are given.
      scoring: the rule of the scores.
      value_dim: width of the values; None is head_dim.
      shared_values: values are the first value_dim elements of the keys, which alone travel.
      whole_heads: heads are whole although the part splits head_dim: latent attention deals out
        heads over these mesh axes instead.
      in_lockstep: partial scores are summed over devices, so that all of them compute whatever a
        mask leaves to any.
    """

    batch: int
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int
    item_bytes: int
    packed: bool = False
    scoring: Scoring = BIDIRECTIONAL
    value_dim: int | None = None
    shared_values: bool = False
    whole_heads: bool = False
    in_lockstep: bool = False

    @property
    def accumulator_bytes(self) -> int:
        """The bytes of a score or a travelling key gradient: float32, or float64 for float64."""
        return max(4, self.item_bytes)

    @property
    def values(self) -> int:
        """The width of the values."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def own_values(self) -> int:
        """The width of the values that are no part of the keys."""
        return 0 if self.shared_values else self.values

    def work(self, scores: int, block: int) -> "AttentionWork":
        """Return the work of `scores` scores per head, in blocks of `block` tokens."""
        rows = self.batch * self.heads
        return AttentionWork(rows * scores, self.head_dim + self.values, rows, block)


class AttentionWork(NamedTuple):
    """The work of one forward call on the busiest device.

    Attributes:
      scores: scores of all heads, in whole blocks.
      width: elements of head_dim and of the values per score.
      rows: heads of all sequences, whose blocks are computed together.
      block: tokens in a block of queries or keys.
    """

    scores: int
    width: int
    rows: int
    block: int

    @property
    def flops(self) -> float:
        """The FLOPs of Q K^T and P V."""
        return 2.0 * self.scores * self.width


@dataclass(frozen=True)
class KvLayout:
    """The layout of one layer's cached keys and values over devices, besides their heads.

    Attributes:
      seq_axes: mesh axes that split the slots.
      batch_axes: the leading seq_axes that split the sequences outside of attention, so that a
        device computes a share of the batch; queries are all-gathered over them.
      slice_axes: mesh axes that split every head's width: partial scores are summed over them.
      spread_axes: mesh axes that split the width outside of attention and the slots of whole heads
        inside: queries are all-gathered along their width, outputs reduce-scattered.
    """

    seq_axes: tuple[str, ...] = ()
    batch_axes: tuple[str, ...] = ()
    slice_axes: tuple[str, ...] = ()
    spread_axes: tuple[str, ...] = ()

    @property
    def slot_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the slots, major first."""
        return self.seq_axes + self.spread_axes

    @property
    def replicated_axes(self) -> tuple[str, ...]:
        """The seq_axes along which every device computes the same sequences."""
        return self.seq_axes[len(self.batch_axes) :]


class AttentionPart(Protocol):
    """The protocol of an attention part. Parts nest: some have an `inner` part."""

    @property
    def seq_axes(self) -> tuple[str, ...]:
        """The mesh axes over which this part expects the sequence to be split, major first."""
        ...

    @property
    def slice_axes(self) -> tuple[str, ...]:
        """The mesh axes over which this part expects head_dim to be split."""
        ...

    @property
    def approximation(self) -> str:
        """The difference from the unsharded model's result, in one line; "" if there is none."""
        ...

    def positions(self, index: Any, local_length: int, sizes: Sizes) -> Any:
        """Return the positions of a device's tokens in the whole sequence, [L / seq] int32.

        Args:
          index: the device's index over all seq_axes; a Python integer gives a NumPy array.
          local_length: tokens per device.
          sizes: mesh axis -> size.
        """
        ...

    @property
    def keys_travel(self) -> bool:
        """Whether keys travel as they are, so that latent attention keeps them latents."""
        ...

    def attend(
        self, q, k, v, *, scoring: Scoring, segment_ids, sinks: jax.Array | None = None,
        partial_over: str | None = None, value_dim: int | None = None, whole_heads: bool = False,
    ) -> jax.Array:  # fmt: skip
        """Return attention's output in the layout of q. Call it inside `jax.shard_map`.

        Args:
          q, k, v: [B, L, H, K] and [B, L, G, K], this device's shares.
          scoring: the rule of the scores.
          segment_ids: [B, L] for this device's tokens, or None.
          sinks: [H], the scores of these heads' sinks, or None.
          partial_over: mesh axis that splits K: see `ring_attention`.
          value_dim: V, if v is None: values are the first V elements of the keys.
          whole_heads: see `AttentionShape`.

        Raises:
          ValueError: shapes that this part cannot split.
        """
        ...

    def kv_layout(self) -> KvLayout:
        """Return the layout of cached keys and values for decoding."""
        ...

    def work(self, shape: AttentionShape, sizes: Sizes) -> AttentionWork:
        """Return the work of the busiest device in one forward call."""
        ...

    def transfers(self, shape: AttentionShape, sizes: Sizes, calls: int) -> tuple[Transfer, ...]:
        """Return the closed form of what `calls` forward calls send."""
        ...

    def recompute_transfers(
        self, shape: AttentionShape, sizes: Sizes, calls: int
    ) -> tuple[Transfer, ...]:
        """Return the part of `transfers` that a layer recomputed for its gradient sends again.

        Attention itself sends nothing again, because its result is kept (`remat.attention_result`).
        """
        ...

    def backward_transfers(
        self, shape: AttentionShape, sizes: Sizes, calls: int
    ) -> tuple[Transfer, ...]:
        """Return the closed form of what `calls` backward passes send, without forward passes."""
        ...


def size_over(sizes: Sizes, axes: tuple[str, ...]) -> int:
    """Return the number of devices along some mesh axes together."""
    return math.prod(sizes[a] for a in axes)


def sizes_here() -> dict[str, int]:
    """Return the size of each mesh axis of the enclosing `jax.shard_map`, in mesh order."""
    return dict(jax.sharding.get_abstract_mesh().shape)


@dataclass(frozen=True)
class Local:
    """The attention part for whole sequences and whole heads on every device: nothing moves."""

    @property
    def seq_axes(self) -> tuple[str, ...]:
        return ()

    @property
    def slice_axes(self) -> tuple[str, ...]:
        return ()

    @property
    def approximation(self) -> str:
        return ""

    @property
    def keys_travel(self) -> bool:
        return False

    def positions(self, index, local_length, sizes):
        return numpy_of(index).arange(local_length, dtype=jnp.int32)

    def attend(
        self, q, k, v, *, scoring, segment_ids, sinks=None, partial_over=None, value_dim=None,
        whole_heads=False,
    ):  # fmt: skip
        return ring_attention(
            q, k, v, axis_name=None, **vars(scoring), sinks=sinks, segment_ids=segment_ids,
            partial_over=partial_over, value_dim=value_dim,
        )  # fmt: skip

    def kv_layout(self):
        return KvLayout()

    def work(self, shape, sizes):
        scoring = shape.scoring
        pairs = scores_of_blocks(shape.seq_len, shape.seq_len, scoring.is_causal, scoring.window)
        return shape.work(pairs, block_size(shape.seq_len))

    def transfers(self, shape, sizes, calls):
        return ()

    def recompute_transfers(self, shape, sizes, calls):
        return ()

    def backward_transfers(self, shape, sizes, calls):
        return ()
