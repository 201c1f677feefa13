"""The sequence split over mesh axes, keys and values travelling: `Ring` as a strategy's part."""

from dataclasses import dataclass

from parallax.bounds import Role, transfer
from parallax.parallel.attention_part import KvLayout, size_over
from parallax.parallel.order import Order, check_order, local_positions
from parallax.parallel.pairs import block_of_pairs, scores_of_pairs
from parallax.parallel.ring_attention import ring_attention


@dataclass(frozen=True)
class Ring:
    """The sequence is split over `axis`; keys and values travel around it.

    Attributes:
      axis: mesh axis of the ring, or several, major first: ("node", "seq") is a double ring, where
        each device swaps its keys with the next node once while they go around inside its own.
      order: "natural", or "zigzag", which balances a causal mask.

    Cost: see `ring_attention`.
    """

    axis: str | tuple[str, ...]
    order: Order = "natural"

    def __post_init__(self):
        check_order(self.order)
        if isinstance(self.axis, list):
            object.__setattr__(self, "axis", tuple(self.axis))
        if not self.seq_axes or len(set(self.seq_axes)) != len(self.seq_axes):
            raise ValueError(
                f"Ring: expected a mesh axis or different ones, major first; got {self.axis!r}. "
                "Write for example Ring(('node', 'seq'))."
            )

    @property
    def seq_axes(self) -> tuple[str, ...]:
        return (self.axis,) if isinstance(self.axis, str) else self.axis

    @property
    def slice_axes(self) -> tuple[str, ...]:
        return ()

    @property
    def approximation(self) -> str:
        return ""

    def positions(self, index, local_length, sizes):
        return local_positions(index, local_length, size_over(sizes, self.seq_axes), self.order)

    def attend(self, q, k, v, *, is_causal, segment_ids, partial_over=None):
        return ring_attention(
            q, k, v, axis_name=self.seq_axes, is_causal=is_causal, segment_ids=segment_ids,
            order=self.order, partial_over=partial_over,
        )  # fmt: skip

    def kv_layout(self):
        return KvLayout(self.seq_axes)

    def work(self, shape, sizes):
        size = size_over(sizes, self.seq_axes)
        length = shape.seq_len // size
        pairs = scores_of_pairs(size, length, shape.is_causal, self.order)
        return shape.work(pairs, block_of_pairs(size, length, shape.is_causal, self.order))

    def transfers(self, shape, sizes, calls):
        both = _both(shape, shape.item_bytes)
        found = self._sends("ring_hop", "keys and values", both, sizes, calls)
        if shape.packed:
            ids = shape.batch * shape.seq_len * 4
            found += self._sends("ring_hop", "segment ids", ids, sizes, calls)
        return found

    def recompute_transfers(self, shape, sizes, calls):
        return ()

    def backward_transfers(self, shape, sizes, calls):
        gradients, stored = (_both(shape, n) for n in (shape.accumulator_bytes, shape.item_bytes))
        what = "gradients of keys and values"
        return self.transfers(shape, sizes, calls) + self._sends(
            "ring_gradient", what, gradients, sizes, calls, home_bytes=stored
        )

    def _sends(
        self, role: Role, what, whole_bytes, sizes, arrays: int, home_bytes: float | None = None
    ):
        """In a ring of n: n - 1 sends of what visits, n of what also comes home.

        `home_bytes`: of the outermost ring's last send, when nothing more is added.
        """
        shards, rounds, found = size_over(sizes, self.seq_axes), arrays, ()
        for axis in self.seq_axes:
            n = sizes[axis]
            if n == 1:
                continue

            def sends(said, payload, count, axis=axis, n=n):
                moved = payload / shards
                return (transfer(role, said, "collective-permute", (axis,), n, moved, count),)

            outermost = rounds == arrays
            wide = n - 1 if home_bytes is None or outermost else n
            found += sends(f"{what} around '{axis}'", whole_bytes, rounds * wide)
            if home_bytes is not None and outermost:
                found += sends(f"{what} home", home_bytes, rounds)
            rounds *= n
        return found


def _both(shape, item_bytes: int) -> float:
    """Bytes of keys and values of whole sequences."""
    width = shape.head_dim + shape.values
    return shape.batch * shape.seq_len * shape.kv_heads * width * item_bytes
