"""The attention part that exchanges a split of the sequence for a split of the heads."""

import dataclasses
from dataclasses import dataclass

from jax import lax

from parallax.bounds import Role, transfer
from parallax.parallel.attention_part import (
    AttentionPart,
    AttentionShape,
    KvLayout,
    Local,
    size_over,
)
from parallax.parallel.head_exchange import (
    TOKENS,
    from_heads,
    heads_of,
    kv_heads_read,
    spread,
    to_heads,
)
from parallax.parallel.order import numpy_of


@dataclass(frozen=True)
class Ulysses:
    """The Ulysses attention part: all-to-alls from tokens to heads, attention, and back.

    Attention sees longer pieces of fewer heads. The sequence is split over the inner part's mesh
    axes and then over `axis`. Every device gets the key/value heads that its query heads read; if
    there are fewer than devices, several devices get the same head.

    Attributes:
      axis: mesh axis; its size divides the query heads.
      inner: how attention crosses the other mesh axes.

    Cost: (P - 1) / P of a device's q, k, v and output each, by all-to-all, and again backward. Keys
      and values count P G' heads, where a part of the query heads reads G'.
    Reference: Jacobs et al., "DeepSpeed Ulysses", 2023.
    """

    axis: str
    inner: AttentionPart = Local()

    @property
    def seq_axes(self) -> tuple[str, ...]:
        return (*self.inner.seq_axes, self.axis)

    @property
    def slice_axes(self) -> tuple[str, ...]:
        return self.inner.slice_axes

    @property
    def approximation(self) -> str:
        return self.inner.approximation

    @property
    def keys_travel(self) -> bool:
        return self.inner.keys_travel

    def positions(self, index, local_length, sizes):
        size, numpy = sizes[self.axis], numpy_of(index)
        piece = self.inner.positions(index // size, local_length * size, sizes)
        start = index % size * local_length
        return numpy.take(piece, start + numpy.arange(local_length, dtype=numpy.int32), axis=0)

    def attend(
        self, q, k, v, *, scoring, segment_ids, sinks=None, partial_over=None, value_dim=None,
        whole_heads=False,
    ):  # fmt: skip
        table = self._table(q.shape[2], k.shape[2], lax.axis_size(self.axis))

        def to_own(x, heads=None):
            return to_heads(x if heads is None else spread(x, heads), self.axis, TOKENS)

        q, k, v = to_own(q), to_own(k, table), None if v is None else to_own(v, table)
        if segment_ids is not None:
            segment_ids = lax.all_gather(segment_ids, self.axis, axis=TOKENS, tiled=True)
        out = self.inner.attend(
            q, k, v, scoring=scoring, segment_ids=segment_ids,
            sinks=heads_of(sinks, lax.axis_index(self.axis), lax.axis_size(self.axis)),
            partial_over=partial_over, value_dim=value_dim, whole_heads=whole_heads,
        )  # fmt: skip
        return from_heads(out, self.axis, TOKENS)

    def kv_layout(self):
        return KvLayout(self.seq_axes)

    def work(self, shape, sizes):
        return self.inner.work(self._inner_shape(shape, sizes), sizes)

    def transfers(self, shape, sizes, calls):
        inner = self.inner.transfers(self._inner_shape(shape, sizes), sizes, calls)
        return self._forward(shape, sizes, calls) + inner

    def recompute_transfers(self, shape, sizes, calls):
        inner = self.inner.recompute_transfers(self._inner_shape(shape, sizes), sizes, calls)
        return self._forward(shape, sizes, calls) + inner

    def _forward(self, shape, sizes, calls):
        transfers = self._exchanges(shape, sizes, calls)
        if shape.packed and sizes[self.axis] > 1:
            ids = shape.batch * shape.seq_len // size_over(sizes, self.inner.seq_axes) * 4
            transfers += (
                transfer("segment_ids", "segment ids of the sequence", "all-gather", (self.axis,),
                         sizes[self.axis], ids, calls),
            )  # fmt: skip
        return transfers

    def backward_transfers(self, shape, sizes, calls):
        inner = self.inner.backward_transfers(self._inner_shape(shape, sizes), sizes, calls)
        return self._exchanges(shape, sizes, calls) + inner

    def _exchanges(self, shape, sizes, calls):
        size, inner = sizes[self.axis], self._inner_shape(shape, sizes)
        # If head_dim is split as well, only this device's slice of it travels here.
        slices = 1 if shape.whole_heads else size_over(sizes, self.slice_axes)
        tokens = shape.batch * shape.seq_len // size_over(sizes, self.seq_axes)
        token = tokens * size * shape.item_bytes
        moved: tuple[tuple[Role, str, int], ...] = (
            ("queries", "queries", inner.heads * shape.head_dim),
            ("keys_values", "keys", inner.kv_heads * shape.head_dim),
            ("keys_values", "values", inner.kv_heads * shape.own_values),
            ("outputs", "outputs", inner.heads * shape.values),
        )
        return tuple(
            transfer(role, f"{what} between tokens and heads", "all-to-all", (self.axis,), size,
                     token * width // slices, calls)
            for role, what, width in moved if size > 1 and width
        )  # fmt: skip

    def _inner_shape(self, shape: AttentionShape, sizes) -> AttentionShape:
        table = self._table(shape.heads, shape.kv_heads, sizes[self.axis])
        return dataclasses.replace(
            shape, heads=shape.heads // sizes[self.axis], kv_heads=table.shape[1]
        )

    def _table(self, heads: int, kv_heads: int, size: int):
        if heads % size:
            raise ValueError(
                f"Ulysses: mesh axis '{self.axis}' (size {size}) does not divide {heads} query "
                f"heads. Use a divisor of {heads}, and Ulysses('{self.axis}', inner=Ring(...)) "
                "over a second mesh axis for more devices."
            )
        return kv_heads_read(heads, kv_heads, size)
