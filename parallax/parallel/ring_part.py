"""The sequence split over mesh axes, keys and values travelling: `Ring` as a strategy's part."""

from dataclasses import dataclass

from parallax.bounds import transfer
from parallax.parallel.attention_part import size_over
from parallax.parallel.order import Order, check_order, local_positions
from parallax.parallel.pairs import scores_of_pairs
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

    def work(self, shape, sizes):
        size = size_over(sizes, self.seq_axes)
        pairs = scores_of_pairs(size, shape.seq_len // size, shape.is_causal, self.order)
        return shape.work(pairs)

    def transfers(self, shape, sizes, calls):
        arrays = [("keys", shape.head_dim), ("values", shape.values)]
        per_token = {what: shape.kv_heads * width * shape.item_bytes for what, width in arrays}
        if shape.packed:
            per_token["segment ids"] = 4
        return self._around(per_token, shape, sizes, calls, homewards=0)

    def recompute_transfers(self, shape, sizes, calls):
        return ()

    def backward_transfers(self, shape, sizes, calls):
        arrays = {"keys' gradients": shape.head_dim, "values' gradients": shape.values}
        elements = {what: shape.kv_heads * width for what, width in arrays.items()}
        wide = {what: n * shape.accumulator_bytes for what, n in elements.items()}
        stored = {what: n * shape.item_bytes for what, n in elements.items()}
        return (
            *self.transfers(shape, sizes, calls),
            *self._around(wide, shape, sizes, calls, homewards=1, stored=stored),
        )

    def _around(self, per_token, shape, sizes, calls, homewards: int, stored=None):
        """Sends in every ring of n: n - 1 of what visits, n of what also comes home.

        `stored`: bytes a token of what the outermost ring sends home: its last send of all.
        """
        tokens = shape.batch * shape.seq_len // size_over(sizes, self.seq_axes)
        out, rounds = (), calls
        for axis in self.seq_axes:
            n = sizes[axis]
            if n == 1:
                continue
            last = stored is not None and rounds == calls
            for what, item in per_token.items():
                sends = rounds * (n - 1 + homewards - last)
                out += (transfer(f"{what} around '{axis}'", "collective-permute", (axis,), n,
                                 tokens * item, sends),)  # fmt: skip
                if last:
                    out += (transfer(f"{what} home", "collective-permute", (axis,), n,
                                     tokens * stored[what], rounds),)  # fmt: skip
            rounds *= n
        return out
