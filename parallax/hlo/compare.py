"""The comparison of two accounts of one program's communication."""

from collections.abc import Mapping

from parallax.hlo.collectives import Ledger

Totals = Mapping[tuple[str, tuple[str, ...] | None], float]
# Tolerance for sums in another order; one collective more or less is far beyond it.
_ROUNDING = 1e-9


def differing_totals(
    a: Totals, b: Totals
) -> tuple[tuple[str, tuple[str, ...] | None, float, float], ...]:
    """List (kind, axes, bytes in a, bytes in b) wherever two accounts differ.

    Only bytes are compared, as XLA may combine several collectives into one launch.

    Args:
      a, b: bytes leaving a device, by (kind, mesh axes).
    """
    rows = []
    for kind, axes in dict.fromkeys([*a, *b]):
        both = a.get((kind, axes), 0.0), b.get((kind, axes), 0.0)
        if abs(both[0] - both[1]) > _ROUNDING * max(both):
            rows.append((kind, axes, *both))
    return tuple(rows)


def compare(a: Ledger, b: Ledger) -> tuple[tuple[str, tuple[str, ...] | None, float, float], ...]:
    """List the totals in which two ledgers differ, such as `read_ledger`'s and `jaxpr_ledger`'s."""
    return differing_totals(a.by_kind_and_axes(), b.by_kind_and_axes())
