"""What a layer-wise paper's report shows beside its run: placement, scale, recorded runs."""

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from parallax.meshes.cluster import cluster as find_cluster
from parallax.models.config import ModelConfig
from parallax.papers.paper import Paper
from parallax.papers.placing import PlacementFacts, placement_facts
from parallax.papers.scaling import scale_rows
from parallax.report import words
from parallax.report.comparison import Comparison
from parallax.report.facts import Cell
from parallax.report.grid import Grid
from parallax.report.placement_section import placement_grids, stored_in
from parallax.report.scale_section import scale_grids
from parallax.workload import Workload


@dataclass(frozen=True)
class Section:
    """One subject.

    Attributes:
      title: of it.
      said: what its tables come to, in sentences.
      grids: its tables, on the page.
      in_short: those of them that a terminal shows too.
    """

    title: str
    said: tuple[str, ...]
    grids: tuple[Grid, ...]
    in_short: tuple[Grid, ...] = ()


def section_to_dict(section: Section) -> dict[str, Any]:
    """Plain data: cells are words, numbers in them are of their column's tag."""
    return {
        "title": section.title,
        "said": list(section.said),
        "tables": [
            {
                "title": grid.title,
                "columns": [{"name": n, "unit": None, "tag": tag} for n, tag in grid.heads],
                "rows": [[cell.text for cell in row] for row in grid.rows],
                "lines": list(grid.lines),
                "in_short": grid in section.in_short,
            }
            for grid in section.grids
        ],
    }


def section_from_dict(data: dict[str, Any]) -> Section:
    """Inverse of `section_to_dict`, but for colours."""
    grids = tuple(
        Grid(
            t["title"],
            tuple((c["name"], c["tag"]) for c in t["columns"]),
            tuple(tuple(Cell(text) for text in row) for row in t["rows"]),
            tuple(t["lines"]),
        )
        for t in data["tables"]
    )
    short = tuple(g for g, t in zip(grids, data["tables"], strict=True) if t["in_short"])
    return Section(data["title"], tuple(data["said"]), grids, short)


def sections(report: Comparison) -> tuple[Section, ...]:
    """Those of a report: with a budget placement, of a layer-wise paper all."""
    budget = report.request.get("budget")
    paper = report.paper
    if paper is None or paper.proposed != "layerwise":
        paper = None
    if paper is None and budget is None:
        return ()
    return _sections(paper, report.config, report.workload, budget, report.cluster)


@functools.lru_cache(maxsize=16)
def _sections(
    paper: Paper | None, config: ModelConfig, workload: Workload, budget: str | None, cluster: str
) -> tuple[Section, ...]:
    # A paper's figures stand beside its own model and workload only.
    own = paper is not None and (config, workload) == (paper.config, paper.workload)
    facts = placement_facts(paper if own and paper else config, budget, cluster, workload=workload)
    found = [_placement(facts)]
    if paper is not None:
        found.append(_scale(paper, cluster))
        found += [section_from_dict(data) for data in _recorded().get(paper.name, ())]
    return tuple(found)


def _recorded() -> dict[str, Any]:
    """What `python -m parallax.recording` wrote, by paper."""
    text = (resources.files("parallax.report") / "recorded.json").read_text(encoding="utf-8")
    return json.loads(text)


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


def _scale(paper: Paper, cluster: str) -> Section:
    where = find_cluster(cluster)
    rows = scale_rows(paper, where=where)
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
                f"{words.PHASES[phase]}: layer-wise in {paper.config.dtype}, {', '.join(speeds)} "
                "(modelled; time between nodes unvalidated)."
            )
    said.append(
        "One layer a device does a layer's work in every tick at any depth: throughput does not "
        "grow with the devices."
    )
    return Section("One layer a device, from 8 to 64", tuple(said), grids)
