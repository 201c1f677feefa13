"""How attention crosses devices, as data: each part knows its mathematics and its closed forms."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from parallax.bounds import Transfer, transfer
from parallax.parallel.order import Order, check_order, local_positions
from parallax.parallel.ring_attention import ring_attention


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention call on one device, before the sequence is split.

    Attributes: batch sequences on this device; seq_len tokens of a whole sequence; heads and
    kv_heads on this device; head_dim; item_bytes of keys and values; packed: segment ids travel.
    """

    batch: int
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int
    item_bytes: int
    packed: bool = False


class AttentionPart(Protocol):
    """What a strategy says about attention."""

    @property
    def seq_axes(self) -> tuple[str, ...]:
        """Mesh axes over which this part expects the sequence to be split."""
        ...

    def positions(self, local_length: int) -> jax.Array:
        """Positions in the whole sequence of this device's tokens, [L / P] int32."""
        ...

    def attend(self, q, k, v, *, is_causal: bool, segment_ids) -> jax.Array:
        """Exact attention on this device's tokens, [B, L, H, K]."""
        ...

    def transfers(self, shape: AttentionShape, sizes, calls: int) -> tuple[Transfer, ...]:
        """Closed form of what `calls` forward calls move."""
        ...


@dataclass(frozen=True)
class Local:
    """Every device holds whole sequences: nothing moves."""

    @property
    def seq_axes(self) -> tuple[str, ...]:
        return ()

    def positions(self, local_length):
        return jnp.arange(local_length, dtype=jnp.int32)

    def attend(self, q, k, v, *, is_causal, segment_ids):
        return ring_attention(q, k, v, axis_name=None, is_causal=is_causal, segment_ids=segment_ids)

    def transfers(self, shape, sizes, calls):
        return ()

    def recompute_transfers(self, shape, sizes, calls):
        return self.transfers(shape, sizes, calls)

    def backward_transfers(self, shape, sizes, calls):
        return ()


@dataclass(frozen=True)
class Ring:
    """The sequence is split over `axis`; keys and values travel around it.

    Attributes:
      axis: mesh axis of the ring.
      order: "natural", or "zigzag", which balances a causal mask.
    """

    axis: str
    order: Order = "natural"

    def __post_init__(self):
        check_order(self.order)

    @property
    def seq_axes(self) -> tuple[str, ...]:
        return (self.axis,)

    def positions(self, local_length):
        index, size = lax.axis_index(self.axis), lax.axis_size(self.axis)
        return local_positions(index, local_length, size, self.order)

    def attend(self, q, k, v, *, is_causal, segment_ids):
        return ring_attention(
            q, k, v, axis_name=self.axis, is_causal=is_causal, segment_ids=segment_ids,
            order=self.order,
        )  # fmt: skip

    def recompute_transfers(self, shape, sizes, calls):
        return self.transfers(shape, sizes, calls)

    def backward_transfers(self, shape, sizes, calls):
        ring_size = sizes[self.axis]
        n = shape.batch * shape.seq_len // ring_size * shape.kv_heads * shape.head_dim
        wide = 8 if shape.item_bytes == 8 else 4
        return (
            *self.transfers(shape, sizes, calls),
            transfer(
                "gradients of keys and values around the ring",
                "collective-permute",
                (self.axis,),
                ring_size,
                n * wide,
                2 * ring_size * calls,
            ),
        )

    def transfers(self, shape, sizes, calls):
        ring_size = sizes[self.axis]
        tokens = shape.batch * shape.seq_len // ring_size
        key = tokens * shape.kv_heads * shape.head_dim * shape.item_bytes
        hops = (ring_size - 1) * calls
        out = (
            transfer("keys and values around the ring", "collective-permute", (self.axis,),
                     ring_size, key, 2 * hops),
        )  # fmt: skip
        if shape.packed:
            out += (
                transfer("segment ids around the ring", "collective-permute", (self.axis,),
                         ring_size, tokens * 4, hops),
            )  # fmt: skip
        return out


ATTENTION_PARTS = {"local": Local, "ring": Ring}
