"""The ledger as a reader sees it: one row per kind and mesh axes, beside its minimum."""

from dataclasses import dataclass

from parallax.results.lens_results import Collective, Compilation


@dataclass(frozen=True)
class LedgerRow:
    """All collectives of one kind over the same mesh axes.

    Attributes:
      kind, axes: as in the ledger.
      what: the purposes, from the closed form; "" if there is none.
      count: number of executions (compiled).
      moved_bytes: bytes sent per device (compiled).
      minimum_bytes: the closed-form minimum (derived); None if there is none.
      async_count, overlapped_count: executions that are async, and those with GEMMs between.
      flops_between: FLOPs per device between starts and dones, all executions (compiled).
      places: the places in the Python program that they come from.
    """

    kind: str
    axes: tuple[str, ...] | None
    what: str
    count: float
    moved_bytes: float
    minimum_bytes: float | None
    async_count: float
    overlapped_count: float
    flops_between: float
    places: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """The bytes moved over the minimum; None where there is no minimum to divide by."""
        return self.moved_bytes / self.minimum_bytes if self.minimum_bytes else None


def ledger_rows(compilation: Compilation) -> tuple[LedgerRow, ...]:
    """Return rows by kind and axes, most bytes first, including what is expected but missing."""
    collectives = compilation.collectives
    expected = [t for t in compilation.transfers if t.wire_bytes]
    keys = dict.fromkeys((x.kind, x.axes) for x in (*collectives, *expected))
    rows = []
    for key in keys:
        formulas = [t for t in expected if (t.kind, t.axes) == key]
        minimum = sum(t.minimum_bytes for t in formulas) if compilation.has_closed_form else None
        mine = [c for c in collectives if (c.kind, c.axes) == key]
        rows.append(_row(*key, ", ".join(t.what for t in formulas), minimum, mine))
    return tuple(sorted(rows, key=lambda row: -row.moved_bytes))


def _row(
    kind: str,
    axes: tuple[str, ...] | None,
    what: str,
    minimum_bytes: float | None,
    collectives: list[Collective],
) -> LedgerRow:
    return LedgerRow(
        kind=kind,
        axes=axes,
        what=what,
        count=sum(c.count for c in collectives),
        moved_bytes=sum(c.total_bytes for c in collectives),
        minimum_bytes=minimum_bytes,
        async_count=sum(c.count for c in collectives if c.is_async),
        overlapped_count=sum(c.count for c in collectives if c.async_with_compute),
        flops_between=sum(c.flops_between * c.count for c in collectives),
        places=tuple(dict.fromkeys(c.op_name for c in collectives)),
    )
