"""The collectives of a program, alone and as a ledger: what is sent, how often, beside what."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

RAGGED = "ragged-all-to-all"


class BranchSide(NamedTuple):
    """One side of a branch, of which it is not known how often it is taken.

    `branch` is the name of its instruction, `side` counts from 0, and there are `of` sides.
    """

    branch: str
    side: int
    of: int


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: HLO name of the collective.
      axes: mesh axes it runs over, in mesh order; None if its groups match no set of axes. For a
        permute, the fewest axes within whose groups all its pairs stay.
      group_size: devices per group.
      payload_bytes: S, bytes of the full array (all-gather: gathered; reduce-scatter: input). For a
        ragged all-to-all, the buffer that rows are sent from, whether full or not.
      wire_bytes: bytes leaving a device in one execution, under ring algorithms. For a permute,
        those of a device that sends; for a ragged all-to-all, those that the caller derived, or the
        buffer.
      count: executions in one run, loops multiplied out. A branch is taken, and a loop of unknown
        trip count runs once each time it is reached.
      dtype: HLO name of the dtype.
      op_name: name stack of the op in the Python program.
      is_async: whether the compiled program starts it and waits for it in two instructions.
      gemms_between, flops_between: matrix products scheduled between start and done. That does not
        make them overlap: how much of the transfer they hide is for a model to say.
      pairs: (sender, receiver) pairs of a permute.
      groups: groups of devices of the other kinds.
      parts: (dtype, bytes of the payload) where XLA joined arrays of several dtypes; () otherwise.
      name: name of the HLO instruction, unique in its program; "" in a jaxpr's ledger.
      is_bound: whether wire_bytes is an upper bound, as the rows sent depend on data.
      sides: the sides of branches that depend on data around it, outermost first; () if it always
        runs.
      open_loop: name and line of the loop of unknown trip count around it: `count` is then per
        iteration of that loop; "" if there is none.
    """

    kind: str
    axes: tuple[str, ...] | None
    group_size: int
    payload_bytes: int
    wire_bytes: float
    count: float
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
    sides: tuple[BranchSide, ...] = ()
    open_loop: str = ""

    @property
    def primitive(self) -> str:
        """The JAX operation it comes from, such as "psum"; "" if the text has no name."""
        return self.op_name.rpartition("/")[2].partition("[")[0]

    @property
    def in_branch(self) -> bool:
        """Whether it runs in a branch that depends on data, and so may not run at all."""
        return bool(self.sides)

    @property
    def low_count(self) -> float:
        """The fewest executions in one run: none where a branch may not be taken."""
        return 0 if self.in_branch else self.count

    @property
    def ragged(self) -> bool:
        """Whether the bytes sent depend on data."""
        return self.kind == RAGGED

    @property
    def async_with_compute(self) -> bool:
        """Whether it is async, with at least one matrix product between start and done."""
        return self.is_async and self.gemms_between > 0

    @property
    def total_bytes(self) -> float:
        """The bytes leaving a device in one run."""
        return self.wire_bytes * self.count

    @property
    def senders(self) -> int:
        """The number of devices that send, which is smaller in a permute that does not wrap."""
        return sum(a != b for a, b in self.pairs) or sum(len(g) for g in self.groups)


@dataclass(frozen=True)
class Ledger:
    """The ledger: all collectives of a program, with totals of their bytes."""

    collectives: tuple[Collective, ...]

    def __iter__(self) -> Iterator[Collective]:
        return iter(self.collectives)

    def __len__(self) -> int:
        return len(self.collectives)

    @property
    def is_bound(self) -> bool:
        """Whether totals are upper bounds, as bytes of a ragged all-to-all depend on data."""
        return any(c.is_bound for c in self)

    @property
    def open_loops(self) -> tuple[str, ...]:
        """The loops of unknown trip count that send: totals count one iteration of each."""
        return tuple(sorted({c.open_loop for c in self} - {""}))

    @property
    def taken(self) -> tuple[Collective, ...]:
        """The collectives of one run whose branches take the side that sends most."""
        return tuple(_taken(self.collectives, 0, max))

    @property
    def low_total(self) -> float:
        """The bytes leaving a device in one run whose branches take the side that sends least."""
        return sum(c.total_bytes for c in _taken(self.collectives, 0, min))

    def total(self, kind: str | None = None, axes: tuple[str, ...] | None = None) -> float:
        """Sum the bytes leaving a device in one run, for one kind and one set of axes if given.

        Of a branch that depends on data, the side that sends most counts.
        """
        wanted = (
            c for c in self if (kind is None or c.kind == kind) and (axes is None or c.axes == axes)
        )
        return sum(c.total_bytes for c in Ledger(tuple(wanted)).taken)

    def by_kind_and_axes(self) -> dict[tuple[str, tuple[str, ...] | None], float]:
        """Return the bytes leaving a device in one run, by (kind, mesh axes)."""
        keys = dict.fromkeys((c.kind, c.axes) for c in self)
        groups = {key: tuple(c for c in self if (c.kind, c.axes) == key) for key in keys}
        return {key: Ledger(group).total() for key, group in groups.items()}


def _taken(
    collectives: tuple[Collective, ...], depth: int, choose: Callable
) -> Iterator[Collective]:
    """Yield the collectives of one run: `choose` picks each branch's side by its bytes."""
    branches: dict[str, dict[int, list[Collective]]] = {}
    of: dict[str, int] = {}
    for c in collectives:
        if len(c.sides) <= depth:
            yield c
        else:
            around = c.sides[depth]
            of[around.branch] = around.of
            branches.setdefault(around.branch, {}).setdefault(around.side, []).append(c)
    for branch, found in branches.items():
        sides = [
            tuple(_taken(tuple(found.get(n, ())), depth + 1, choose)) for n in range(of[branch])
        ]
        yield from choose(sides, key=lambda side: sum(c.total_bytes for c in side))
