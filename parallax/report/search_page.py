"""The results of a search as a table, an HTML page and files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table, box
from rich.text import Text

from parallax.codec import encode, number
from parallax.meshes.cluster import Cluster
from parallax.report import words
from parallax.report.answer import Choice, recommend
from parallax.report.plan_report import (
    PlanReport,
    exposed_part,
    in_groups,
    per_token,
    refuse_all,
    timed_by,
)
from parallax.report.search_plots import first_plot, frontier_plot, regime_plot
from parallax.report.sentences import describe_model
from parallax.results.lens_results import Figure
from parallax.search.results import OBJECTIVES, Candidate, RegimeMap, Search, Timing

PLAN_VERSION = 1
_SHOWN = 12
_HEADS = ("M", "TTFT", "TPOT", "tokens/s", "J/token", "memory", "by")


@dataclass(frozen=True)
class SearchReport(PlanReport):
    """The results of a search, to print, show and save."""

    search: Search
    cluster: Cluster
    maps: tuple[RegimeMap, ...] = ()

    @property
    def winner(self) -> Candidate | None:
        """The best candidate that fits and is fast enough; None if there is none."""
        return self.search.winner

    @property
    def answer(self) -> str:
        """What to take, by how much, what is in doubt and what would change it, in words."""
        return _answer(self.search)

    def table(self) -> RenderableType:
        """Render the candidates for a rich console of 100 columns."""
        return Group(*_table(self.search, self.cluster))

    def command(self, folder: str | Path = ".") -> str:
        """Return the command that runs the winner: none for serving, whose flags are free."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; every number has its unit and tag."""
        return _to_dict(self)

    def shown(self) -> dict[str, Any]:
        """Return the values that search.html.j2 shows."""
        return _shown(self)


def _asked(search: Search) -> str:
    r = search.request
    text = (
        f"{words.counted(r.batch, 'prompt')} of {words.counted(r.prompt_len, 'token')}, "
        f"{words.counted(r.output_len, 'new token')} each"
    )
    text += f", on {r.cluster}: {OBJECTIVES[r.objective]}"
    if r.max_tpot_s is not None:
        text += f", TPOT at most {words.in_seconds(r.max_tpot_s)}"
    if r.kernels is not None:
        text += f", with {r.kernels} kernels where they can"
    return text


def _table(search: Search, cluster: Cluster):
    yield Text(f"Plan: {_asked(search)}", style="bold")
    yield Text(describe_model(search.request.model), style="dim")
    yield Text()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("")
    table.add_column("strategy and mesh", overflow="fold", ratio=1)
    for head in _HEADS:
        table.add_column(head, justify="right")
    for order, group in in_groups(search.ranked[:_SHOWN]):
        table.add_row("", Text(order, style="italic"), *[""] * len(_HEADS))
        for place, c in group:
            table.add_row(*_cells(place, c, search), style="bold" if not c.why else "")
            if c.why:
                table.add_row("", Text(c.why, style="dim"), *[""] * len(_HEADS))
    yield table
    rest = len(search.ranked) - _SHOWN
    if rest > 0:
        yield Text(f"and {rest} more in plan.json", style="dim")
    yield Text()
    for line in notes(search):
        yield Text(line, style="dim")
    yield Text()
    yield Text(_answer(search), style="bold")


def _answer(search: Search) -> str:
    first, limit = search.winner, search.request.max_tpot_s
    if first is None:
        return refuse_all(search.ranked[0])
    alike = [c for c in search.ranked if c.fits and timed_by(c) == timed_by(first)]
    if limit is not None:
        alike = [c for c in alike if c.timing.tpot_s is None or c.timing.tpot_s.value <= limit]
    return recommend([_choice(c, search) for c in alike])


def _choice(c: Candidate, search: Search) -> Choice:
    t = c.timing
    name = f"{c.strategy.name} on {c.strategy.mesh}"
    if c.compression != search.request.model.compression:
        name += f" in {','.join(c.compression or ('dense',))}"
    if search.request.objective == "energy":
        said = f"{words.digits(t.energy_j.value)} J a token"
        return Choice(name, t.energy_j, said, unvalidated=t.unvalidated)
    if search.request.objective == "tpot":
        step = t.tpot_s or t.ttft_s
        said = f"TPOT {words.in_seconds(step.value)}"
        return Choice(name, step, said, unvalidated=t.unvalidated)
    cost = per_token(t.tokens_per_s)
    said = words.in_tokens_per_s(t.tokens_per_s.value)
    return Choice(name, cost, said, exposed_part(t.terms_s, cost), t.unvalidated)


def _cells(number: int, c: Candidate, search: Search) -> tuple[str, ...]:
    t, asked = c.timing, (search.request.batch, search.request.prompt_len)
    name = f"{c.strategy.name}  {c.strategy.mesh}"
    if c.compression != search.request.model.compression:
        name += f"  {','.join(c.compression or ('dense',))}"
    if c.runs != asked:
        name += f"  (prompts padded to {c.runs[0]:,} x {c.runs[1]:,})"
    rate = words.in_tokens_per_s(t.tokens_per_s.value).removesuffix(" tokens/s")
    return (
        str(number), name, str(c.microbatches),
        words.in_seconds(t.ttft_s.value), words.in_seconds(t.tpot_s.value) if t.tpot_s else "-",
        rate + (" unvalidated" if t.unvalidated else ""), words.digits(t.energy_j.value),
        words.in_bytes(t.memory_bytes.value), "compiled" if c.compiled else "analytical",
    )  # fmt: skip


def notes(search: Search) -> list[str]:
    """Return what a reader must know beside the table."""
    compiled = sum(c.compiled is not None for c in search.ranked)
    lines = [
        f"All figures are modelled. {words.counted(search.considered, 'strategy', 'strategies')} "
        "ranked by the analytical "
        f"model in {search.seconds.get('ranking', 0):.1f} s; {compiled} compiled in "
        f"{search.seconds.get('compiling', 0):.1f} s and ranked by their programs.",
        "tokens/s counts output tokens over prefill and decode; M: microbatches of the prefill. "
        "Times of programs and of the analytical model (docs/generated/accuracy.md) are never "
        "ordered among each other: those compiled come first.",
    ]
    lines += search.notes
    first = search.ranked[0].timing
    if first.tokens_per_s.low is not None and first.tokens_per_s.high is not None:
        low, high = (words.in_tokens_per_s(x) for x in (first.tokens_per_s.low,
                                                        first.tokens_per_s.high))  # fmt: skip
        lines.append(f"80 % error bar of the first: {low} to {high}.")
    if any(c.compression for c in search.ranked):
        lines.append(
            "Compressed candidates compute another function than the dense model (parallax "
            "compress_quality measures how far off). Estimated as XLA runs them: a layer's "
            "matrices are read packed, written dense and read again in each microbatch."
        )
    lines.append(
        "A difference of a few percent is below the model's error: among the first candidates, "
        "take the simplest."
    )
    behind = sorted({c.timing.unvalidated for c in search.ranked} - {""}, key=len)
    if behind:
        lines.append(f"unvalidated: no published measurement validates the {behind[-1]}.")
    if search.request.kernels == "mosaic" and not any("by hand" in text for text in behind):
        lines.append("No candidate can take the mosaic kernels: they are for Hopper GPUs.")
    lines += [f"left out {n} times: {why}" for why, n in sorted(search.refused.items())[:4]]
    return lines


def _figure(f: Figure | None) -> dict[str, Any] | None:
    return f and {name: x for name, x in encode(f).items() if name != "note"}


def _timing(t: Timing | None) -> dict[str, Any] | None:
    if t is None:
        return None
    return {
        "ttft": _figure(t.ttft_s), "tpot": _figure(t.tpot_s),
        "tokens_per_s": _figure(t.tokens_per_s), "energy_per_token": _figure(t.energy_j),
        "memory": _figure(t.memory_bytes), "unvalidated": t.unvalidated,
        "terms": {n: number(s, "s", "modelled") for n, s in t.terms_s.items()},
    }  # fmt: skip


def _to_dict(report: SearchReport) -> dict[str, Any]:
    search = report.search
    best = {id(c) for c in search.frontier}
    return {
        "plan_version": PLAN_VERSION,
        "answer": report.answer,
        "request": encode(search.request),
        "candidates": [
            {
                "strategy": c.strategy.to_dict(), "microbatches": c.microbatches, "fits": c.fits,
                "compression": encode(c.compression),
                "bubble": number(c.bubble, "1", "derived"),
                "closed_form": _timing(c.closed_form), "compiled": _timing(c.compiled),
                "why_not_first": c.why, "on_frontier": id(c) in best, "ordered_by": timed_by(c),
            }
            for c in search.ranked
        ],
        "refused": dict(search.refused),
        "seconds": {k: number(v, "s", "measured") for k, v in search.seconds.items()},
        "regimes": [
            {
                "x": m.x, "y": m.y, "constant": m.constant,
                "points": [{"x": p.x, "y": p.y, "winner": p.winner, "lead": p.lead,
                            "seconds": dict(p.seconds)} for p in m.points],
            }
            for m in report.maps
        ],
        "notes": notes(search),
    }  # fmt: skip


def _shown(report: SearchReport) -> dict[str, Any]:
    search = report.search
    return dict(
        cluster=search.request.cluster,
        title=f"Plan: {_asked(search)}",
        answer=report.answer,
        model=describe_model(search.request.model),
        heads=("strategy and mesh", *_HEADS[:-1]),
        plotted="Throughput against TPOT",
        plot_note="The larger a mark, the more memory per device; the line joins the best of both",
        first_plot=first_plot(search.ranked, "output tokens/s"),
        groups=[
            (order, [(_cells(i, c, search)[:-1], c.why) for i, c in group])
            for order, group in in_groups(search.ranked[:40])
        ],
        plot=frontier_plot(search),
        maps=[(m, regime_plot(m, i)) for i, m in enumerate(report.maps)],
        notes=notes(search),
    )
