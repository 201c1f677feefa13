"""The sections that a report shows beside its run: placement, scale, records of long runs."""

from parallax.papers.results import PlacementFacts, ScaleRow
from parallax.report import words
from parallax.report.comparison import Comparison
from parallax.report.placement_section import placement_grids, stored_in
from parallax.report.recorded import Section
from parallax.report.scale_section import scale_grids


def sections(report: Comparison) -> tuple[Section, ...]:
    """Return the sections of a report, one for each subject that was derived beside its run."""
    findings, shown = report.findings, []
    if findings.placement is not None:
        shown.append(_placement(findings.placement))
    if findings.scale and report.paper is not None:
        shown.append(_scale(findings.scale, report.paper.config.dtype))
    return (*shown, *report.recorded)


def _placement(facts: PlacementFacts) -> Section:
    grids = placement_grids(facts)
    named = [row for row in facts.footprints if row.verdict]
    apart = sum(row.verdict == "differs" for row in named)
    said = []
    if named:
        said.append(
            f"Of {len(named)} byte counts that the paper prints for a layer, {len(named) - apart} "
            f"agree with its sizes, {apart} do not (derived)."
        )
    for row in facts.placed:
        if not row.largest.fits:
            over = words.times(row.largest.n_bytes / row.largest.budget)
            said.append(
                f"{row.asked}: {stored_in(row.formats)} takes {over} the budget; "
                f"{row.largest.tiles:,} tiles, or {words.digits(row.bits_to_fit)} bits per weight."
            )
    return Section("Placement", tuple(said), grids, grids[1:])


def _scale(rows: tuple[ScaleRow, ...], dtype: str) -> Section:
    grids = scale_grids(rows)
    said = []
    for phase in ("prefill", "decode"):
        mine = [r for r in rows if r.phase == phase and r.tokens_per_s is not None]
        dense = [r for r in mine if r.strategy == "layerwise" and not r.unpacking]
        speeds = [
            f"{r.layers} layers {words.in_tokens_per_s(r.tokens_per_s.value)}"
            for r in dense
            if r.tokens_per_s is not None
        ]
        if speeds:
            said.append(
                f"{words.PHASES[phase]}: layer-wise in {dtype}, {', '.join(speeds)} "
                "(modelled; time between nodes unvalidated)."
            )
    said.append(
        "With one layer per device, each tick does one layer's work at any depth: throughput does "
        "not grow with the devices."
    )
    return Section("One layer per device, from 8 to 64", tuple(said), grids)
