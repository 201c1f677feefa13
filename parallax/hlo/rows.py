"""The rows of a ledger by kind, mesh axes and dtype, for tables of communication."""

from dataclasses import dataclass

from parallax.hlo.collectives import Ledger


@dataclass(frozen=True)
class DtypeRow:
    """The total that one kind of collective sends over the same mesh axes in one dtype.

    Attributes:
      kind, axes: as in the ledger.
      dtype: HLO name of one dtype; a collective of several dtypes has a part in each one's row.
      count: executions in one run; a collective of several dtypes counts in each row.
      total_bytes: bytes leaving a device in one run.
      async_bytes, overlapped_bytes: those of them in async collectives, and in async ones with
        matrix products between start and done.
      is_bound: whether total_bytes is an upper bound.
    """

    kind: str
    axes: tuple[str, ...] | None
    dtype: str
    count: float
    total_bytes: float
    async_bytes: float
    overlapped_bytes: float
    is_bound: bool

    @property
    def async_share(self) -> float:
        """The share of the bytes that async collectives send; 0 where nothing is sent."""
        return self.async_bytes / self.total_bytes if self.total_bytes else 0.0


def dtype_rows(ledger: Ledger) -> tuple[DtypeRow, ...]:
    """Return rows by kind, axes and dtype, most bytes first; their bytes sum to the ledger's."""
    parts = [
        ((c.kind, c.axes, dtype), c, c.total_bytes * size / max(1, c.payload_bytes))
        for c in ledger
        for dtype, size in c.parts or ((c.dtype, c.payload_bytes),)
    ]
    rows = []
    for key in dict.fromkeys(key for key, _, _ in parts):
        mine = [(c, sent) for at, c, sent in parts if at == key]
        rows.append(
            DtypeRow(
                *key,
                count=sum(c.count for c, _ in mine),
                total_bytes=sum(sent for _, sent in mine),
                async_bytes=sum(sent for c, sent in mine if c.is_async),
                overlapped_bytes=sum(sent for c, sent in mine if c.async_with_compute),
                is_bound=any(c.is_bound for c, _ in mine),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.total_bytes))
