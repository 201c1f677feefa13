"""What the figures of a program leave open, in one line each: branches, loops, unpriced work."""

from collections.abc import Iterable

from parallax.hlo.collectives import Ledger
from parallax.hlo.flops import Flops


def branch_caveats(ledger: Ledger, flops: Flops) -> tuple[str, ...]:
    """Say between which counts a program lies, as its branches and routed rows depend on data."""
    notes = []
    if flops.low != flops.high:
        notes.append(
            f"a branch depends on data: {flops.low:.4g} to {flops.high:.4g} FLOPs a device, "
            "the larger is shown"
        )
    branched = sum(c.in_branch for c in ledger)
    if branched:
        notes.append(f"{branched} collectives are in branches that depend on data: {_sent(ledger)}")
    if ledger.is_bound:
        notes.append(
            "the rows that a ragged all-to-all sends depend on data: its whole buffer counts, an "
            "upper bound"
        )
    return tuple(notes)


def _sent(ledger: Ledger) -> str:
    low, high = ledger.low_total, ledger.total()
    if low == high:
        return f"{high / 1e6:.4g} MB leave a device, whichever side is taken"
    return f"{low / 1e6:.4g} to {high / 1e6:.4g} MB leave a device, the larger is shown"


def open_caveats(loops: Iterable[str], unpriced: Iterable[str] = ()) -> tuple[str, ...]:
    """Say which loops of unknown trip count, and which unpriced work, make figures lower bounds."""
    return (
        *(f"loop {loop} of unknown trip count: FLOPs, collectives and time are those of one "
          f"iteration each time it is reached; pass trips={{{loop.split(' ')[0]!r}: iterations}}"
          for loop in sorted(set(loops))),
        *(f"unpriced: {what}: only its bytes count, so the time is a lower bound with no error bar"
          for what in unpriced),
    )  # fmt: skip


def trips_caveats(unused: Iterable[str]) -> tuple[str, ...]:
    """Say which names in `trips` count no loop."""
    return tuple(
        f"trips[{name!r}] counts nothing: no loop of unknown trip count has this name"
        for name in unused
    )
