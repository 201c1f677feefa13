"""One collective of a program, and all of them: what is sent, how often, what runs meanwhile."""

from collections.abc import Iterator
from dataclasses import dataclass

RAGGED = "ragged-all-to-all"


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: HLO name.
      axes: mesh axes it runs over, in mesh order; None if its groups are no set of axes. Of a
        permute: the fewest axes within whose groups all its pairs stay.
      group_size: devices that take part together.
      payload_bytes: S, the full array (all-gather: gathered; reduce-scatter: input). Of a ragged
        all-to-all: the buffer rows are sent from, whether full or not.
      wire_bytes: bytes leaving a device in one execution, under ring algorithms. For a permute:
        of a device that sends. For a ragged all-to-all: as derived by the caller, or the buffer.
      count: executions in one run, loops multiplied out.
      dtype: HLO name.
      op_name: where in the Python program it came from.
      is_async: the compiled program starts it and waits for it in two instructions.
      gemms_between, flops_between: matrix products scheduled between start and done. Not "hidden":
        how much of the transfer they cover is for a model to say.
      pairs: (sender, receiver) of a permute.
      groups: of the others.
      parts: (dtype, bytes of the payload) where XLA joined arrays of several dtypes; () otherwise.
      name: of the HLO instruction, unique in its program; "" in a jaxpr's ledger.
      is_bound: wire_bytes is an upper bound: how many rows leave depends on data and nobody said.
    """

    kind: str
    axes: tuple[str, ...] | None
    group_size: int
    payload_bytes: int
    wire_bytes: float
    count: int
    dtype: str
    op_name: str
    is_async: bool = False
    gemms_between: int = 0
    flops_between: float = 0.0
    pairs: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    parts: tuple[tuple[str, int], ...] = ()
    name: str = ""
    is_bound: bool = False

    @property
    def ragged(self) -> bool:
        """How many bytes it sends depends on data."""
        return self.kind == RAGGED

    @property
    def async_with_compute(self) -> bool:
        """Async, with at least one matrix product between start and done."""
        return self.is_async and self.gemms_between > 0

    @property
    def total_bytes(self) -> float:
        """Bytes leaving a device in one run."""
        return self.wire_bytes * self.count

    @property
    def senders(self) -> int:
        """Devices that send, of all: fewer in a permute that does not wrap."""
        return sum(a != b for a, b in self.pairs) or sum(len(g) for g in self.groups)


@dataclass(frozen=True)
class Ledger:
    """All collectives of a program."""

    collectives: tuple[Collective, ...]

    def __iter__(self) -> Iterator[Collective]:
        return iter(self.collectives)

    def __len__(self) -> int:
        return len(self.collectives)

    @property
    def is_bound(self) -> bool:
        """Totals are upper bounds: bytes of a ragged all-to-all depend on data."""
        return any(c.is_bound for c in self)

    def total(self, kind: str | None = None, axes: tuple[str, ...] | None = None) -> float:
        """Bytes leaving a device in one run, of one kind and over one set of axes if given."""
        return sum(
            c.total_bytes
            for c in self
            if (kind is None or c.kind == kind) and (axes is None or c.axes == axes)
        )

    def by_kind_and_axes(self) -> dict[tuple[str, tuple[str, ...] | None], float]:
        """Bytes leaving a device in one run, by kind and mesh axes."""
        keys = dict.fromkeys((c.kind, c.axes) for c in self)
        return {key: sum(c.total_bytes for c in self if (c.kind, c.axes) == key) for key in keys}
