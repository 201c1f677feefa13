"""The report on a terminal of 100 columns or more, for any number of strategies."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table, box
from rich.text import Text

from parallax.report import words
from parallax.report.audit import counts_line
from parallax.report.claims import claim_sentences, tpot_reading
from parallax.report.comparison import Comparison
from parallax.report.fact_rows import fact_rows
from parallax.report.facts import Row
from parallax.report.grid import grid_table
from parallax.report.ledger_rows import ledger_rows
from parallax.report.profile_section import profile_grid, profiles
from parallax.report.schedule_picture import is_small, schedule_text, schedule_title
from parallax.report.sections import sections
from parallax.report.sentences import (
    assumption_lines,
    describe_measurement,
    describe_model,
    describe_verification,
    describe_workload,
    failure_reasons,
    not_run,
    notes,
    phase_of,
)
from parallax.report.sweep import sweep_table
from parallax.report.validation import verdicts
from parallax.results.lens_results import TAGS, Compilation, StrategyResult
from parallax.results.sweep_results import Sweep

_COLUMNS_A_TABLE = 3
_STYLES = {"good": "green", "bad": "bold red", "plain": ""}
_VERDICT_STYLES = {"pass": "green", "fail": "bold red", "undecided": "yellow"}


def report_table(report: Comparison) -> RenderableType:
    """Render the whole report for a rich console."""
    return Group(*_parts(report))


def _parts(report: Comparison) -> Iterator[RenderableType]:
    yield from _head(report)
    if report.sweep is not None:
        yield from _sweep_page(report, report.sweep)
        return
    rows = fact_rows(report.results, report.paper)
    for first in range(0, len(report.results), _COLUMNS_A_TABLE):
        yield _comparison(report.results, rows, slice(first, first + _COLUMNS_A_TABLE))
    yield _legend(phase_of(report.results))
    verified = describe_verification(report.results, report.config)
    yield from _list("", (verified, describe_measurement(report.results)))
    for result in report.results:
        if result.compilation is not None and result.compilation.collectives:
            yield Text()
            yield _ledger(result.name, result.compilation)
    yield from _list("Pipeline schedules (derived)", _schedules(report.results))
    yield from _list("Notes (compiled)", notes(report.results))
    for name, profile in profiles(report.results):
        yield Text()
        yield grid_table(profile_grid(name, profile))
    yield from _paper(report)
    yield from _sections(report)
    left_out = not_run(report.config, report.results, report.paper, report.lenses)
    yield from _list("Not run", left_out)
    yield from _end(report)


def _schedules(results: tuple[StrategyResult, ...]) -> Iterator[str]:
    """Yield each pipeline's schedule, drawn where it is small."""
    for result in results:
        schedule = result.training and result.training.schedule
        if schedule is not None:
            show = schedule_text if is_small(schedule) else schedule_title
            yield f"{result.name}: {show(schedule)}"


def _sections(report: Comparison) -> Iterator[RenderableType]:
    for section in sections(report):
        yield from _list(section.title, section.said)
        for grid in section.in_short:
            yield Text()
            yield grid_table(grid)


def _sweep_page(report: Comparison, sweep: Sweep) -> Iterator[RenderableType]:
    yield sweep_table(sweep)
    rows = fact_rows(report.results, None)
    if rows:
        yield Text()
        yield _comparison(report.results, rows, slice(0, len(report.results)))
    yield from _list("", (describe_verification(report.results, report.config),))
    yield from _end(report)


def _head(report: Comparison) -> Iterator[RenderableType]:
    title = report.paper.title if report.paper else "Strategies compared"
    yield Text(title, style="bold")
    yield Text(describe_model(report.config), style="dim")
    phase = phase_of(report.results)
    said = "" if phase == "prefill" else f"{words.PHASES[phase]}; "
    yield Text(f"{describe_workload(report.workload)}; {said}cluster {report.cluster}", style="dim")
    yield Text()


def _comparison(results: tuple[StrategyResult, ...], rows: tuple[Row, ...], part: slice) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("tag", style="dim", no_wrap=True)
    for result in results[part]:
        table.add_column(Text(result.name), justify="right", overflow="fold")
    last = None
    for row in rows:
        if not any(row.cells[part]):
            continue
        if row.question != last:
            if last is not None:
                table.add_row()
            table.add_row(Text(row.question, style="bold"))
            last = row.question
        cells = [
            Text(cell.text, style=_STYLES[cell.status]) if cell else Text("-", style="dim")
            for cell in row.cells[part]
        ]
        table.add_row(Text(f"  {row.label}"), row.tag, *cells)
    return table


def _legend(phase: str) -> Text:
    lines = ["Tags: " + "; ".join(f"{tag}: {meaning}" for tag, meaning in TAGS.items()) + "."]
    lines.append(
        f"Bytes and FLOPs are of one device in {words.PHASES[phase]}; between: FLOPs of GEMMs that "
        "the program schedules between a transfer's start and its done, counted once for each "
        "transfer under way; that does not say that they hide it."
    )
    return Text("\n".join(lines), style="dim")


def _ledger(name: str, compilation: Compilation) -> Table:
    title = Text(f"Ledger of {name} on {compilation.mesh}")
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                  pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)  # fmt: skip
    # Its purposes are long: without a width it would take the room of the last column.
    table.add_column("collective", width=19, overflow="fold")
    table.add_column("axes", overflow="fold")
    heads = (("times", "compiled"), ("per device", "compiled"), ("minimum", "derived"),
             ("ratio", "compiled"), ("async", "compiled"), ("between", "compiled"))  # fmt: skip
    for head, tag in heads:
        table.add_column(f"{head}\n[dim]{tag}[/dim]", justify="right", no_wrap=head != "async")
    for row in ledger_rows(compilation):
        minimum = "-" if row.minimum_bytes is None else words.in_bytes(row.minimum_bytes)
        share = "-" if row.ratio is None else words.ratio(row.ratio)
        between = words.in_flops(row.flops_between) if row.flops_between else "none"
        cells = (row.kind, words.axes_name(row.axes), f"{row.count:,}",
                 words.in_bytes(row.moved_bytes), minimum, share,
                 words.share_of(row.async_count, row.count), between)  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))
        if row.what:
            table.add_row(Text(row.what, style="dim italic"))
    return table


def _paper(report: Comparison) -> Iterator[RenderableType]:
    paper = report.paper
    if paper is None:
        return
    run = (paper, report.config, report.workload, report.cluster, report.results)
    yield from _list("Assumed", ("; ".join(assumption_lines(paper)) + ".",))
    sentences = [s for s in claim_sentences(*run) if s.claim.quantity in ("TPS", "TPOT")]
    lines = [Text(s.text, style="bold red" if s.contradicted else "") for s in sentences]
    yield from _list("Claimed by the paper", (*lines, tpot_reading(paper)))
    said = (
        f"{counts_line(report.findings.audited)}.",
        f"For each derivation: parallax claims --paper={paper.name}, and report.html.",
    )
    yield from _list("Claims audit", said)
    points = []
    for point in verdicts(*run, report.findings.scale):
        line = Text(f"{point.status}: ", style=_VERDICT_STYLES[point.status])
        points.append(line.append(f"{point.statement} ({point.evidence})", style="default"))
    yield from _list(
        "The paper's own validation points (they do not change the exit status)", points
    )


def _list(title: str, lines) -> Iterator[RenderableType]:
    texts = [Text(x) if isinstance(x, str) else x for x in lines if x]
    if not texts:
        return
    if title:
        yield Text()
        yield Text(title, style="bold")
    for line in texts:
        yield Padding(line, (0, 0, 0, 2 if title else 0))


def _end(report: Comparison) -> Iterator[RenderableType]:
    yield Text()
    yield _verdict(report)
    yield Text()
    yield Text(report.answer, style="bold")


def _verdict(report: Comparison) -> Text:
    reasons = [reason for result in report.results for reason in failure_reasons(result)]
    reasons += report.sweep.failures if report.sweep else ()
    if reasons:
        return Text("FAILED: " + "; ".join(reasons) + ".", style="bold red")
    line = passed_line(report.results, report.sweep)
    return Text(f"{line} ({report.seconds:.0f} s)", style="bold green")


def passed_line(results: tuple[StrategyResult, ...], sweep: Sweep | None = None) -> str:
    """Return what holds for all strategies, naming only what was checked."""
    strategies = words.counted(len(results), "strategy", "strategies")
    if sweep is not None:
        ran = sum(p.found is not None for p in sweep.points)
        exact = sum(r.verification is not None for r in results)
        said = f"; exact: {exact} of {strategies} checked" if exact else ""
        points = words.counted(len(sweep.points), "point")
        return f"{ran} of {points} compiled, each ledger equals its closed form{said}."
    compiled = [r.compilation for r in results if r.compilation]
    counts = {
        "exact": sum(r.verification is not None for r in results),
        "fits": len(compiled),
        "ledger equals its closed form": sum(c.has_closed_form for c in compiled),
    }
    held = [
        what if count == len(results) else f"{what} ({count} of {len(results)} checked)"
        for what, count in counts.items()
        if count
    ]
    what = ", ".join(held) or "nothing was checked"
    return f"{strategies}: {what}."
