"""The attention part for a sequence split over mesh axes, around which keys and values travel."""

from dataclasses import dataclass

from parallax.bounds import Role, transfer
from parallax.parallel.attention_part import AttentionShape, KvLayout, size_over
from parallax.parallel.order import Order, check_order, local_positions
from parallax.parallel.pairs import block_of_pairs, scores_of_pairs
from parallax.parallel.ring_attention import ring_attention


@dataclass(frozen=True)
class Ring:
    """The ring attention part: the sequence is split over `axis`; keys and values travel around it.

    Attributes:
      axis: mesh axis of the ring, or several, major first: ("node", "seq") is a double ring, in
        which keys rotate inside a node while each device swaps them with the next node once.
      order: "natural", or "zigzag", which balances the load of a causal mask.

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
                f"Ring: expected one mesh axis or several different ones, major first; got "
                f"{self.axis!r}. Write for example Ring(('node', 'seq'))."
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

    @property
    def keys_travel(self) -> bool:
        return True

    def positions(self, index, local_length, sizes):
        return local_positions(index, local_length, size_over(sizes, self.seq_axes), self.order)

    def attend(
        self, q, k, v, *, scoring, segment_ids, sinks=None, partial_over=None, value_dim=None,
        whole_heads=False,
    ):  # fmt: skip
        return ring_attention(
            q, k, v, axis_name=self.seq_axes, **vars(scoring), sinks=sinks, value_dim=value_dim,
            segment_ids=segment_ids, order=self.order, partial_over=partial_over,
        )  # fmt: skip

    def kv_layout(self):
        return KvLayout(self.seq_axes)

    def work(self, shape, sizes):
        size = size_over(sizes, self.seq_axes)
        length = shape.seq_len // size
        pairs = scores_of_pairs(
            size, length, shape.scoring, self.order, in_lockstep=shape.in_lockstep
        )
        return shape.work(pairs, block_of_pairs(size, length, shape.scoring, self.order))

    def transfers(self, shape, sizes, calls):
        both = _both(shape, shape.item_bytes)
        sends = self._sends("ring_hop", "keys and values", both, shape, sizes, calls)
        if shape.packed:
            ids = shape.batch * shape.seq_len * 4
            sends += self._sends("ring_hop", "segment ids", ids, shape, sizes, calls)
        return sends

    def recompute_transfers(self, shape, sizes, calls):
        return ()

    def backward_transfers(self, shape, sizes, calls):
        gradients, stored = (_both(shape, n) for n in (shape.accumulator_bytes, shape.item_bytes))
        what = "gradients of keys and values"
        return self.transfers(shape, sizes, calls) + self._sends(
            "ring_gradient", what, gradients, shape, sizes, calls, home_bytes=stored
        )

    def _sends(
        self, role: Role, what, whole_bytes, shape: AttentionShape, sizes, arrays: int,
        home_bytes: float | None = None,
    ):  # fmt: skip
        """Return the sends of rings: in a ring of n, n - 1 of keys, n of gradients that come home.

        `home_bytes` are those of the outermost ring's last send, after which nothing is added. A
        window in natural order has one flat ring, and sends only as far as it reaches.
        """
        shards, passes, transfers = size_over(sizes, self.seq_axes), arrays, ()
        if shape.scoring.window is not None and self.order == "natural":
            hops = shape.scoring.reached(shape.seq_len // shards, shards)
            axes, around = self.seq_axes, whole_bytes / shards
            named = ", ".join(f"'{axis}'" for axis in axes)

            def flat(said: str, payload: float, count: int):
                if count < 1:
                    return ()
                return (transfer(role, said, "collective-permute", axes, shards, payload, count),)

            if home_bytes is None:
                return flat(f"{what} around {named}", around, arrays * hops)
            along = flat(f"{what} around {named}", around, arrays * (hops - 1))
            return along + flat(f"{what} home", home_bytes / shards, arrays * min(hops, 1))
        for axis in self.seq_axes:
            n = sizes[axis]
            if n == 1:
                continue

            def send(said, payload, count, axis=axis, n=n):
                moved = payload / shards
                return (transfer(role, said, "collective-permute", (axis,), n, moved, count),)

            outermost = passes == arrays
            hops = n - 1 if home_bytes is None or outermost else n
            transfers += send(f"{what} around '{axis}'", whole_bytes, passes * hops)
            if home_bytes is not None and outermost:
                transfers += send(f"{what} home", home_bytes, passes)
            passes *= n
        return transfers


def _both(shape, item_bytes: int) -> float:
    """Return the bytes of keys and values of whole sequences."""
    width = shape.head_dim + shape.own_values
    return shape.batch * shape.seq_len * shape.kv_heads * width * item_bytes
