"""Two accounts of one program held against each other."""

from collections.abc import Mapping

from parallax.hlo.collectives import Ledger

Totals = Mapping[tuple[str, tuple[str, ...] | None], float]
# Sums of large integers in another order; a collective more or less is far beyond it.
_ROUNDING = 1e-9


def differing_totals(
    a: Totals, b: Totals
) -> tuple[tuple[str, tuple[str, ...] | None, float, float], ...]:
    """(kind, axes, bytes in a, bytes in b) wherever two accounts differ.

    Only bytes decide: XLA may combine several collectives into one launch.

    Args:
      a, b: bytes leaving a device by (kind, mesh axes).
    """
    rows = []
    for kind, axes in dict.fromkeys([*a, *b]):
        found = a.get((kind, axes), 0.0), b.get((kind, axes), 0.0)
        if abs(found[0] - found[1]) > _ROUNDING * max(found):
            rows.append((kind, axes, *found))
    return tuple(rows)


def compare(a: Ledger, b: Ledger) -> tuple[tuple[str, tuple[str, ...] | None, float, float], ...]:
    """`differing_totals` of two ledgers, for example of `read_ledger` and `jaxpr_ledger`."""
    return differing_totals(a.by_kind_and_axes(), b.by_kind_and_axes())
