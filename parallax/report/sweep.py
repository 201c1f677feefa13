"""A sweep as rows: each strategy's points in order, or why a point cannot run."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table, box
from rich.text import Text

from parallax.report import words
from parallax.report.facts import Cell
from parallax.results.lens_results import Tag
from parallax.results.sweep_results import PointFigures, Sweep

# The column heads, each with the tag of its numbers.
HEADS: tuple[tuple[str, Tag], ...] = (
    ("memory", "compiled"),
    ("usable", "assumed"),
    ("sent", "compiled"),
    ("/ minimum", "compiled"),
    ("GEMM", "compiled"),
    ("step", "modelled"),
    ("tokens/s", "modelled"),
    ("bound by", "modelled"),
)
_WIDTHS = (8, 8, 8, 9, 10, 8, 11, 16)
_STYLES = {"good": "green", "bad": "bold red", "plain": ""}


@dataclass(frozen=True)
class SweepRow:
    """One point in words: one cell per head, or no cells and the reason."""

    strategy: str
    value: str
    cells: tuple[Cell, ...]
    why_not: str


def sweep_rows(sweep: Sweep) -> tuple[SweepRow, ...]:
    """Return all points as rows, strategy by strategy."""
    return tuple(
        SweepRow(
            point.strategy,
            f"{point.value:,}",
            () if point.found is None else _cells(point.found),
            words.one_line(point.why_not),
        )
        for name in sweep.strategies
        for point in sweep.of(name)
    )


def _cells(figures: PointFigures) -> tuple[Cell, ...]:
    share = figures.ratio
    ratio = "no form" if figures.minimum is None else "-" if share is None else ""
    rate = words.in_tokens_per_s(figures.tokens_per_s.value).removesuffix(" tokens/s")
    star = "*" if figures.unvalidated else ""
    return (
        Cell(words.in_bytes(figures.memory.value)),
        Cell("fits", "good") if figures.fits else Cell("too big", "bad"),
        Cell(words.in_bytes(figures.wire.value)),
        Cell(ratio or words.ratio(share.value if share else 0.0),
             "plain" if figures.ledger_matches else "bad"),
        Cell(words.in_flops(figures.gemm_flops.value)),
        Cell(words.in_seconds(figures.step.value) + star),
        Cell(rate + star),
        Cell(figures.bound),
    )  # fmt: skip


def sweep_legend(sweep: Sweep) -> tuple[str, ...]:
    """Return what a star means, if there is one."""
    unvalidated = {p.found.unvalidated for p in sweep.points if p.found} - {""}
    return tuple(f"* unvalidated: no published measurement validates the {what}."
                 for what in sorted(unvalidated))  # fmt: skip


def sweep_table(sweep: Sweep) -> RenderableType:
    """Render a sweep for a rich console of 100 columns."""
    parts: list[RenderableType] = [Text(f"Along {sweep.axis}: {sweep.constant}.")]
    rows, left_out = sweep_rows(sweep), []
    for i, name in enumerate(sweep.strategies):
        table = Table(box=box.SIMPLE_HEAD if i == 0 else None, show_header=i == 0,
                      pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)  # fmt: skip
        table.add_column(sweep.axis, justify="right", width=9)
        for (head, tag), width in zip(HEADS, _WIDTHS, strict=True):
            table.add_column(f"{head}\n[dim]{tag}[/dim]", justify="right", width=width)
        for row in (r for r in rows if r.strategy == name):
            if row.why_not:
                left_out.append(f"{name} at {row.value}: {row.why_not}")
                missing = (*("-" for _ in HEADS[1:]), "cannot run")
                table.add_row(row.value, *(Text(x, style="dim") for x in missing))
            else:
                cells = (Text(c.text, style=_STYLES[c.status]) for c in row.cells)
                table.add_row(row.value, *cells)
        parts += [Text(), Text(words.one_line(name), style="bold"), table]
    parts += [Text(line) for line in sweep_legend(sweep)]
    if left_out:
        parts += [Text(), Text("Points that cannot run", style="bold")]
        parts += [Padding(Text(line), (0, 0, 0, 2)) for line in left_out]
    return Group(*parts)
