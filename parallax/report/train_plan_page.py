"""The results of a search for the best way to train as a table, an HTML page and files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
    refuse_all,
    timed_by,
)
from parallax.report.search_plots import first_plot, memory_plot
from parallax.report.sentences import describe_model
from parallax.search.train_results import (
    TRAIN_OBJECTIVES,
    TrainCandidate,
    TrainSearch,
    TrainTiming,
)

PLAN_VERSION = 1
_SHOWN = 12
_HEADS = ("schedule", "M", "remat", "step", "tokens/s/GPU", "MFU", "J/token", "bubble", "memory",
          "by")  # fmt: skip


@dataclass(frozen=True)
class TrainPlanReport(PlanReport):
    """The results of a search for the best way to train, to print, show and save.

    Attributes:
      search: the results.
      cluster: the cluster that was planned for.
      model: the model as a flag names it.
    """

    columns: ClassVar[int] = 120

    search: TrainSearch
    cluster: Cluster
    model: str

    @property
    def winner(self) -> TrainCandidate | None:
        """The best candidate that fits; None if there is none."""
        return self.search.winner

    @property
    def answer(self) -> str:
        """What to take, by how much, what is in doubt and what would change it, in words."""
        return _answer(self.search)

    def table(self) -> RenderableType:
        """Render the candidates for a rich console of 100 columns or more."""
        return Group(*_table(self))

    def command(self, folder: str | Path = ".") -> str:
        """Return the command that trains as the winner does, saved in a folder; "" without one."""
        if self.winner is None:
            return ""
        request, best = self.search.request, self.winner
        flags = {
            "model": self.model, "strategy": Path(folder) / "strategy.json", "batch": request.batch,
            "seq_len": request.seq_len, "microbatches": best.microbatches, "remat": best.remat,
            "dtype": request.model.dtype, "data": "FILES", "workdir": "FOLDER",
        }  # fmt: skip
        return " ".join(["parallax train", *(f"--{name}={x}" for name, x in flags.items())])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; every number has its unit and tag."""
        return _to_dict(self)

    def shown(self) -> dict[str, Any]:
        """Return the values that search.html.j2 shows."""
        return _shown(self)


def _asked(search: TrainSearch) -> str:
    r = search.request
    batch, length = words.counted(r.batch, "sequence"), words.counted(r.seq_len, "token")
    text = f"training steps of {batch} of {length}, on {r.cluster}: "
    text += TRAIN_OBJECTIVES[r.objective]
    if r.max_bytes is not None:
        text += f", memory at most {words.in_bytes(r.max_bytes)}"
    if r.kernels is not None:
        text += f", with {r.kernels} kernels where they can"
    return text


def _table(report: TrainPlanReport) -> Iterator[RenderableType]:
    search = report.search
    yield Text(f"Plan: {_asked(search)}", style="bold")
    yield Text(describe_model(search.request.model), style="dim")
    yield Text()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("")
    table.add_column("strategy, mesh, sharding", overflow="fold", ratio=1)
    groups = list(in_groups(search.ranked[:_SHOWN]))
    shown = [pair for _, group in groups for pair in group]
    rows = {place: _cells(place, c, report) for place, c in shown}
    # Columns that say nothing here are left to the page.
    told = [n for n, head in enumerate(_HEADS, 2)
            if (head != "J/token" or search.request.objective == "energy")
            and {row[n] for row in rows.values()} - {"-", "0 %"}]  # fmt: skip
    for n in told:
        table.add_column(_HEADS[n - 2], justify="right")
    for order, group in groups:
        table.add_row("", Text(order, style="italic"), *[""] * len(told))
        for place, c in group:
            row = rows[place]
            table.add_row(*row[:2], *(row[n] for n in told), style="bold" if not c.why else "")
    yield table
    yield Text()
    for place, c in shown:
        if c.why:
            yield Text(f"{place}: {c.why}", style="dim")
    rest = len(search.ranked) - _SHOWN
    if rest > 0:
        yield Text(f"and {rest} more in plan.json", style="dim")
    yield Text()
    for line in notes(report):
        yield Text(line, style="dim")
    yield Text()
    yield Text(report.answer, style="bold")


def _answer(search: TrainSearch) -> str:
    first = search.winner
    if first is None:
        return refuse_all(search.ranked[0])
    alike = [c for c in search.ranked if c.fits and timed_by(c) == timed_by(first)]
    return recommend([_choice(c, search) for c in alike])


def _choice(c: TrainCandidate, search: TrainSearch) -> Choice:
    t = c.timing
    name = f"{c.strategy.name} on {c.strategy.mesh}"
    if c.sharding != "-":
        name += f", {c.sharding}"
    if search.request.objective == "energy":
        said = f"{words.digits(t.energy_j.value)} J a token"
        return Choice(name, t.energy_j, said, unvalidated=t.unvalidated)
    said = f"{words.in_seconds(t.step_s.value)} a step"
    return Choice(name, t.step_s, said, exposed_part(t.terms_s, t.step_s), t.unvalidated)


def _cells(place: int, c: TrainCandidate, report: TrainPlanReport) -> tuple[str, ...]:
    t = c.timing
    sharded = "" if c.sharding == "-" else f"\n{c.sharding}"
    rate = words.in_tokens_per_s(t.tokens_per_s.value / report.cluster.devices)
    return (
        str(place), f"{c.strategy.name} {c.strategy.mesh}{sharded}", c.schedule,
        str(c.microbatches), c.remat, words.in_seconds(t.step_s.value),
        rate.removesuffix(" tokens/s") + ("*" if t.unvalidated else ""),
        words.percent(t.mfu.value), words.digits(t.energy_j.value), words.percent(c.bubble),
        _memory(c), "compiled" if c.compiled else "analytical",
    )  # fmt: skip


def _memory(c: TrainCandidate) -> str:
    """Return a candidate's memory, and beside that of its program what was estimated."""
    said = words.in_bytes(c.timing.memory_bytes.value)
    if c.compiled is not None:
        said += f"\n(est. {words.in_bytes(c.closed_form.memory_bytes.value)})"
    return said


def notes(report: TrainPlanReport) -> list[str]:
    """Return what a reader must know beside the table."""
    search = report.search
    compiled = sum(c.compiled is not None for c in search.ranked)
    fit = sum(c.fits for c in search.ranked)
    lines = [
        f"All figures are modelled. {search.considered:,} choices of strategy, sharding, schedule, "
        f"microbatches and remat: the memory of all and the time of {search.estimated:,} were "
        f"estimated in {search.seconds.get('ranking', 0):.1f} s; {compiled} compiled in "
        f"{search.seconds.get('compiling', 0):.1f} s.",
        f"{len(search.ranked)} ways to shard a strategy are listed, each with its best choice of "
        f"the rest; {fit} fit a device. M: microbatches; bubble: time that stages wait over the "
        "time that they work; remat: what layers recompute.",
        "Parameters, sums of gradients and AdamW's moments are float32; products have the model's "
        f"dtype, {search.request.model.dtype}.",
    ]
    if report.winner is not None:
        first = report.winner
        parts = ", ".join(f"{name} {words.in_bytes(x)}" for name, x in first.parts.items() if x)
        lines.append(f"Memory of the first by closed form: {parts}.")
        if first.kept_bytes is not None:
            remat, size = first.kept_bytes
            lines.append(
                f"With remat={remat} the first would need {words.in_bytes(size)}; with "
                f"remat={first.remat} {words.in_bytes(first.closed_form.memory_bytes.value)}."
            )
        step = first.timing.step_s
        if step.low is not None and step.high is not None:
            low, high = words.in_seconds(step.low), words.in_seconds(step.high)
            lines.append(f"80 % error bar of the first's step: {low} to {high}.")
        lines.append(f"Train as the first does: {report.command()}")
    lines.append(
        "A difference of a few percent is below the model's error: among the first candidates, "
        "take the simplest."
    )
    behind = sorted({c.timing.unvalidated for c in search.ranked} - {""}, key=len)
    if behind:
        lines.append(f"*: no published measurement validates the {behind[-1]}.")
    lines += [f"left out {n} times: {why}" for why, n in sorted(search.refused.items())[:4]]
    return lines


def _timing(t: TrainTiming | None) -> dict[str, Any] | None:
    if t is None:
        return None

    def figure(f) -> dict[str, Any]:
        return {name: x for name, x in encode(f).items() if name != "note"}

    return {
        "step": figure(t.step_s), "tokens_per_s": figure(t.tokens_per_s), "mfu": figure(t.mfu),
        "energy_per_token": figure(t.energy_j), "memory": figure(t.memory_bytes),
        "unvalidated": t.unvalidated,
        "terms": {n: number(s, "s", "modelled") for n, s in t.terms_s.items()},
    }  # fmt: skip


def _to_dict(report: TrainPlanReport) -> dict[str, Any]:
    search = report.search
    return {
        "plan_version": PLAN_VERSION,
        "phase": "train",
        "answer": report.answer,
        "request": encode(search.request),
        "command": report.command(),
        "candidates": [
            {
                "strategy": c.strategy.to_dict(), "microbatches": c.microbatches,
                "remat": c.remat, "sharding": c.sharding, "schedule": c.schedule, "fits": c.fits,
                "bubble": number(c.bubble, "1", "modelled"),
                "memory_parts": {n: number(x, "B", "derived") for n, x in c.parts.items()},
                "closed_form": _timing(c.closed_form), "compiled": _timing(c.compiled),
                "why_not_first": c.why, "ordered_by": timed_by(c),
            }
            for c in search.ranked
        ],
        "considered": search.considered, "estimated": search.estimated,
        "refused": dict(search.refused),
        "seconds": {k: number(v, "s", "measured") for k, v in search.seconds.items()},
        "notes": notes(report),
    }  # fmt: skip


def _shown(report: TrainPlanReport) -> dict[str, Any]:
    search = report.search
    return dict(
        cluster=search.request.cluster,
        title=f"Plan: {_asked(search)}",
        answer=report.answer,
        model=describe_model(search.request.model),
        heads=("strategy, mesh, sharding", *_HEADS[:-1]),
        groups=[
            (order, [(_cells(i, c, report)[:-1], c.why) for i, c in group])
            for order, group in in_groups(search.ranked[:40])
        ],
        plotted="Throughput against memory",
        plot_note="The upright line is the memory that a step may need",
        first_plot=first_plot(search.ranked, "tokens/s"),
        plot=memory_plot(search, report.cluster),
        maps=[],
        notes=notes(report),
    )
