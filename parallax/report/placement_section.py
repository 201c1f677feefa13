"""Tables of layer footprints beside a paper's figures, and of placements under budgets."""

from itertools import groupby

from parallax.papers.results import FootprintRow, PlacedRow, PlacementFacts
from parallax.report import words
from parallax.report.facts import Cell, Status
from parallax.report.grid import DataTable

_STATUS: dict[str, Status] = {"differs": "bad", "consistent": "good", "rounding": "good"}


def placement_grids(facts: PlacementFacts) -> tuple[DataTable, DataTable]:
    """Return the table of what one layer takes and the table of where layers go."""
    return _footprints(facts), _placements(facts)


def _footprints(facts: PlacementFacts) -> DataTable:
    work = facts.workload
    whose = (
        f"batch {words.tokens(work.batch, work.seq_len)}, "
        f"{words.counted(work.microbatches, 'microbatch', 'microbatches')}"
        if work
        else "weights alone"
    )
    return DataTable(
        f"What one layer of {facts.model} takes, to the byte",
        (("stored in", None), ("what", None), ("bytes", "derived"), ("printed", "claimed"),
         ("verdict", None), ("why", None)),
        tuple(_footprint(row) for row in facts.footprints),
        (f"{whose}; packed values, positions and float32 scales included.",),
    )  # fmt: skip


def _footprint(row: FootprintRow) -> tuple[Cell, ...]:
    printed = f"{row.claim.printed} {row.claim.unit}" if row.claim else "-"
    return (
        Cell(stored_in(row.formats)), Cell(row.what), Cell(f"{row.n_bytes:,}"), Cell(printed),
        Cell(row.verdict or "not printed", _STATUS.get(row.verdict, "plain")), Cell(row.why),
    )  # fmt: skip


def _placements(facts: PlacementFacts) -> DataTable:
    lines = [f"{name}: {rows[0].budget.n_bytes:,} bytes, {rows[0].budget.source}; counted: "
             f"{rows[0].counted}." for name, rows in _by_budget(facts)]  # fmt: skip
    lines.append(
        "greedy: a device takes layers as long as they fit. optimal: the slowest group is as fast "
        "as possible. Where no placement keeps the budget, the group is that of an even "
        "distribution; cut into tiles, each piece of its weights fits beside the rest."
    )
    return DataTable(
        f"{facts.model} on {words.counted(facts.devices, 'device')} of {facts.cluster} under a "
        "budget",
        (("budget", None), ("stored in", None), ("largest group", "derived"),
         ("of budget", "derived"), ("fits", None), ("layers per device", None),
         ("to fit", "derived"), ("tiles", "derived")),
        tuple(_placement(row) for row in facts.placed),
        tuple(lines),
    )  # fmt: skip


def _placement(row: PlacedRow) -> tuple[Cell, ...]:
    group = row.largest
    fits = Cell("yes", "good")
    if not group.fits:
        fits = Cell(f"no, {words.in_bytes(group.over)} over", "bad")
    elif row.why_not:
        fits = Cell(f"no, {row.why_not}", "bad")
    if row.greedy:
        ways = f"greedy {spelled(row.greedy)}; optimal {spelled(row.optimal)}"
        slower = row.greedy_over_optimal
        ways += f": {words.times(slower)} as slow" if slower > 1 else ""
    else:
        ways = row.why_not
    if group.fits:
        need = "-"
    elif group.would_fit:
        need = group.would_fit
    elif row.bits_to_fit:
        need = f"{words.digits(row.bits_to_fit)} bits per weight"
    else:
        need = "no weight format fits"
    return (
        Cell(row.asked), Cell(stored_in(row.formats)), Cell(words.in_bytes(group.n_bytes)),
        Cell(words.percent(group.n_bytes / group.budget)), fits, Cell(ways), Cell(need),
        Cell(f"{group.tiles:,}" if group.tiles else "none fit"),
    )  # fmt: skip


def _by_budget(facts: PlacementFacts):
    for name, rows in groupby(facts.placed, key=lambda row: row.asked):
        yield name, list(rows)


def stored_in(formats: tuple[str, str]) -> str:
    """Return the formats of attention and MLP, e.g. `float16` or `int8, MLP int8+2:4`."""
    attention, mlp = formats
    return attention if attention == mlp else f"{attention}, MLP {mlp}"


def spelled(counts: tuple[int, ...]) -> str:
    """Return the layers of each device, with equal neighbours merged: `5 x3, 1, 0 x12`."""
    runs = [(n, len(list(group))) for n, group in groupby(counts)]
    return ", ".join(f"{n} x{times}" if times > 1 else f"{n}" for n, times in runs)
