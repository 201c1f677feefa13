"""What a strategy says about attention, and of which sizes: the protocol of the parts.

Shapes: B batch, L tokens, H query heads, G key/value heads, K head_dim; inside a split each is this
device's share of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from parallax.bounds import Transfer
from parallax.kernels.ring_attention import block_size, score_elements
from parallax.parallel.order import numpy_of
from parallax.parallel.ring_attention import ring_attention

Sizes = Mapping[str, int]  # mesh axis -> size, in mesh order


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention call on one device, before the sequence or head_dim is split.

    Attributes:
      batch: sequences on this device.
      seq_len: tokens of a whole sequence.
      heads, kv_heads: on this device, as they arrive at the part.
      head_dim: whole, of queries and keys.
      item_bytes: of queries, keys and values.
      packed: segment ids are at hand.
      is_causal: a query sees its own and earlier positions.
      value_dim: width of the values; None is head_dim.
    """

    batch: int
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int
    item_bytes: int
    packed: bool = False
    is_causal: bool = False
    value_dim: int | None = None

    @property
    def accumulator_bytes(self) -> int:
        """Of one score or one gradient of a key on its way: float32, or float64 for float64."""
        return max(4, self.item_bytes)

    @property
    def values(self) -> int:
        """Width of the values."""
        return self.head_dim if self.value_dim is None else self.value_dim

    def work(self, scores: int, block: int) -> "AttentionWork":
        """Of so many scores a head, in blocks of so many tokens."""
        rows = self.batch * self.heads
        return AttentionWork(rows * scores, self.head_dim + self.values, rows, block)


class AttentionWork(NamedTuple):
    """What one forward call computes on the busiest device.

    Attributes:
      scores: of all its heads, whole blocks.
      width: elements of head_dim and of the values that go with a score.
      rows: heads of all its sequences, whose blocks are computed together.
      block: tokens of a block of queries or keys.
    """

    scores: int
    width: int
    rows: int
    block: int

    @property
    def flops(self) -> float:
        """Of Q K^T and P V."""
        return 2.0 * self.scores * self.width


@dataclass(frozen=True)
class KvLayout:
    """How one layer's cached keys and values are spread over devices, beside their heads.

    Attributes:
      seq_axes: mesh axes over which slots are dealt out.
      batch_axes: of seq_axes, first ones: those that the sequences are split over outside of
        attention, so that a device computes a share of the batch, and queries are gathered.
      slice_axes: mesh axes that hold slices of every head's width: partial scores are summed.
      spread_axes: mesh axes that hold slices outside of attention and slots of whole heads inside:
        queries are gathered along their width, outputs scattered.
    """

    seq_axes: tuple[str, ...] = ()
    batch_axes: tuple[str, ...] = ()
    slice_axes: tuple[str, ...] = ()
    spread_axes: tuple[str, ...] = ()

    @property
    def slot_axes(self) -> tuple[str, ...]:
        """Mesh axes over which slots are dealt out, major first."""
        return self.seq_axes + self.spread_axes

    @property
    def replicated_axes(self) -> tuple[str, ...]:
        """Of seq_axes, those along which every device computes the same sequences."""
        return self.seq_axes[len(self.batch_axes) :]


class AttentionPart(Protocol):
    """What a strategy says about attention. Parts nest: most have an `inner` one."""

    @property
    def seq_axes(self) -> tuple[str, ...]:
        """Mesh axes over which this part expects the sequence to be split, major first."""
        ...

    @property
    def slice_axes(self) -> tuple[str, ...]:
        """Mesh axes over which it expects head_dim to be split."""
        ...

    @property
    def approximation(self) -> str:
        """ "" where the result is the unsharded model's, else in one line what it is instead."""
        ...

    def positions(self, index: Any, local_length: int, sizes: Sizes) -> Any:
        """Positions in the whole sequence of a device's tokens, [L / seq] int32.

        Args:
          index: of the device over seq_axes together; a Python integer gives a NumPy array.
          local_length: tokens it has.
          sizes: mesh axis -> size.
        """
        ...

    def attend(
        self, q, k, v, *, is_causal: bool, segment_ids, partial_over: str | None = None
    ) -> jax.Array:
        """Attention of this device's tokens, in the layout of q. Call it inside `jax.shard_map`.

        Args:
          q, k, v: [B, L, H, K] and [B, L, G, K], this device's shares.
          segment_ids: [B, L] of this device's tokens, or None.
          partial_over: mesh axis that holds slices of K: see `ring_attention`.

        Raises:
          ValueError: shapes that this part cannot split.
        """
        ...

    def kv_layout(self) -> KvLayout:
        """How keys and values are cached for decoding."""
        ...

    def work(self, shape: AttentionShape, sizes: Sizes) -> AttentionWork:
        """What the busiest device computes in one forward call."""
        ...

    def transfers(self, shape: AttentionShape, sizes: Sizes, calls: int) -> tuple[Transfer, ...]:
        """Closed form of what `calls` forward calls move."""
        ...

    def recompute_transfers(
        self, shape: AttentionShape, sizes: Sizes, calls: int
    ) -> tuple[Transfer, ...]:
        """Of `transfers`, what a layer recomputed for its gradient sends again: nothing of the
        attention itself, whose result is kept (`KEPT`)."""
        ...

    def backward_transfers(
        self, shape: AttentionShape, sizes: Sizes, calls: int
    ) -> tuple[Transfer, ...]:
        """Closed form of what the backward passes of `calls` calls move, no forward repeated."""
        ...


def size_over(sizes: Sizes, axes: tuple[str, ...]) -> int:
    """Devices along some mesh axes together."""
    return math.prod(sizes[a] for a in axes)


def sizes_here() -> dict[str, int]:
    """Mesh axis -> size of the `jax.shard_map` around the caller, in mesh order."""
    return dict(jax.sharding.get_abstract_mesh().shape)


@dataclass(frozen=True)
class Local:
    """Every device holds whole sequences and whole heads: nothing moves."""

    @property
    def seq_axes(self) -> tuple[str, ...]:
        return ()

    @property
    def slice_axes(self) -> tuple[str, ...]:
        return ()

    @property
    def approximation(self) -> str:
        return ""

    def positions(self, index, local_length, sizes):
        return numpy_of(index).arange(local_length, dtype=jnp.int32)

    def attend(self, q, k, v, *, is_causal, segment_ids, partial_over=None):
        return ring_attention(
            q, k, v, axis_name=None, is_causal=is_causal, segment_ids=segment_ids,
            partial_over=partial_over,
        )  # fmt: skip

    def kv_layout(self):
        return KvLayout()

    def work(self, shape, sizes):
        pairs = score_elements(shape.seq_len, shape.seq_len, shape.is_causal)
        return shape.work(pairs, block_size(shape.seq_len))

    def transfers(self, shape, sizes, calls):
        return ()

    def recompute_transfers(self, shape, sizes, calls):
        return ()

    def backward_transfers(self, shape, sizes, calls):
        return ()
