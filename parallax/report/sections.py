"""What a report shows beside its run: placement, scale, records of long runs."""

from parallax.papers.results import PlacementFacts, ScaleRow
from parallax.report import words
from parallax.report.comparison import Comparison
from parallax.report.placement_section import placement_grids, stored_in
from parallax.report.recorded import Section
from parallax.report.scale_section import scale_grids


def sections(report: Comparison) -> tuple[Section, ...]:
    """Sections of a report: one for each thing that was worked out beside its run."""
    found, shown = report.findings, []
    if found.placement is not None:
        shown.append(_placement(found.placement))
    if found.scale and report.paper is not None:
        shown.append(_scale(found.scale, report.paper.config.dtype))
    return (*shown, *report.recorded)


def _placement(facts: PlacementFacts) -> Section:
    grids = placement_grids(facts)
    named = [row for row in facts.footprints if row.verdict]
    apart = sum(row.verdict == "differs" for row in named)
    said = []
    if named:
        said.append(
            f"Of {len(named)} bytes that the paper prints for a layer, {len(named) - apart} are "
            f"what its sizes come to, {apart} are not (derived)."
        )
    for row in facts.placed:
        if not row.largest.fits:
            over = words.times(row.largest.n_bytes / row.largest.budget)
            said.append(
                f"{row.asked}: {stored_in(row.formats)} takes {over} the budget; "
                f"{row.largest.tiles:,} tiles, or {words.digits(row.bits_to_fit)} bits a weight."
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
        "One layer a device does a layer's work in every tick at any depth: throughput does not "
        "grow with the devices."
    )
    return Section("One layer a device, from 8 to 64", tuple(said), grids)
