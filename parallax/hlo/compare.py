"""Two accounts of one program held against each other."""

from dataclasses import dataclass

from parallax.hlo.ledger import Ledger


@dataclass(frozen=True)
class Row:
    """A kind and its mesh axes on which two ledgers differ.

    Launches are for the reader: XLA may combine several collectives into one, so only bytes decide.
    """

    kind: str
    axes: tuple[str, ...] | None
    bytes_a: float
    bytes_b: float
    launches_a: int
    launches_b: int


def compare(a: Ledger, b: Ledger) -> tuple[Row, ...]:
    """Kinds and axes whose bytes a device differ; empty where the ledgers agree.

    Args:
      a, b: of the same program, for example `read_ledger` and `jaxpr_ledger`.
    """
    bytes_a, bytes_b = a.by_kind_and_axes(), b.by_kind_and_axes()
    rows = []
    for kind, axes in dict.fromkeys([*bytes_a, *bytes_b]):
        found = bytes_a.get((kind, axes), 0.0), bytes_b.get((kind, axes), 0.0)
        if abs(found[0] - found[1]) > 1e-9 * max(found):
            launches = (
                sum(c.count for c in ledger if (c.kind, c.axes) == (kind, axes))
                for ledger in (a, b)
            )
            rows.append(Row(kind, axes, *found, *launches))
    return tuple(rows)
