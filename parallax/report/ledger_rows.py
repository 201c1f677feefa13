"""The ledger as a reader sees it: one row a kind and mesh axes, beside its minimum."""

from dataclasses import dataclass

from parallax.results import Compilation


@dataclass(frozen=True)
class LedgerRow:
    """All collectives of one kind over the same mesh axes.

    Attributes:
      kind, axes: as in the ledger.
      what: the purposes, from the closed form; "" without one.
      count: executions (compiled).
      moved_bytes: leaving a device (compiled).
      minimum_bytes: closed form (derived); None without one.
      async_count, overlapped_count: executions that are async, and those with GEMMs between.
      flops_between: FLOPs a device between starts and dones, all executions (compiled).
      places: where in the Python program they come from.
    """

    kind: str
    axes: tuple[str, ...] | None
    what: str
    count: int
    moved_bytes: float
    minimum_bytes: float | None
    async_count: int
    overlapped_count: int
    flops_between: float
    places: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """Moved over minimum; None where there is no minimum to divide by."""
        return self.moved_bytes / self.minimum_bytes if self.minimum_bytes else None


def ledger_rows(compilation: Compilation) -> tuple[LedgerRow, ...]:
    """Rows by kind and axes, most bytes first; with what is expected and not there."""
    found = compilation.collectives
    expected = [t for t in compilation.transfers if t.wire_bytes]
    keys = dict.fromkeys([(c.kind, c.axes) for c in found] + [(t.kind, t.axes) for t in expected])
    rows = []
    for kind, axes in keys:
        mine = [c for c in found if (c.kind, c.axes) == (kind, axes)]
        formulas = [t for t in expected if (t.kind, t.axes) == (kind, axes)]
        minimum = sum(t.minimum_bytes for t in formulas) if compilation.has_closed_form else None
        rows.append(
            LedgerRow(
                kind=kind,
                axes=axes,
                what=", ".join(t.what for t in formulas),
                count=sum(c.count for c in mine),
                moved_bytes=sum(c.total_bytes for c in mine),
                minimum_bytes=minimum,
                async_count=sum(c.count for c in mine if c.is_async),
                overlapped_count=sum(c.count for c in mine if c.async_with_compute),
                flops_between=sum(c.flops_between * c.count for c in mine),
                places=tuple(dict.fromkeys(c.op_name for c in mine)),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.moved_bytes))
