"""The plots of a search: throughput against TPOT, and maps of which strategy wins."""

import math
from collections.abc import Sequence

from parallax.meshes.cluster import Cluster
from parallax.report import words
from parallax.report.bars import Bar, Segment, bars
from parallax.report.svg import GRID, INK, MUTED, SERIES, SMALL, new_figure, to_svg
from parallax.search.results import Candidate, RegimeMap, Search
from parallax.search.train_results import TrainCandidate, TrainSearch

_FIRST = 5
_WIDTH, _HEIGHT = 8.6, 4.2
_MARKS = "osD^vP*Xhp<>d8H"


def first_plot(ranked: Sequence[Candidate] | Sequence[TrainCandidate], unit: str) -> str:
    """Plot the throughput of the first candidates that fit, timed alike, with error bars."""
    able = [c for c in ranked if c.fits]
    able = [c for c in able if bool(c.compiled) == bool(able[0].compiled)][:_FIRST]
    if not able:
        return ""
    rows = []
    for i, c in enumerate(able):
        rate, name, mesh = c.timing.tokens_per_s, c.strategy.name, str(c.strategy.mesh)
        text, said = words.in_tokens_per_s(rate.value).replace("tokens/s", unit), ""
        if rate.low is not None and rate.high is not None:
            low, high = words.in_tokens_per_s(rate.low), words.in_tokens_per_s(rate.high)
            said = f", 80 % error bar {low} to {high}"
        segment = Segment(0, rate.value, 4 if i else 1, f"{name} {mesh}: {text}{said}")
        rows.append(Bar(name, words.in_tokens_per_s(rate.value), (segment,), rate.low, rate.high,
                        detail=mesh))  # fmt: skip
    return bars(rows, f"Modelled {unit} of the first candidates",
                lambda x: words.in_tokens_per_s(x).removesuffix(" tokens/s"))  # fmt: skip


def frontier_plot(search: Search) -> str:
    """Plot every candidate that fits: tokens/s against TPOT, memory as size, the frontier."""
    figure, (ax,) = new_figure(_WIDTH, _HEIGHT)
    able = [c for c in search.ranked if c.fits]

    def spot(c):
        t = c.timing
        return 1e3 * (t.tpot_s or t.ttft_s).value, t.tokens_per_s.value

    titles = {}
    for i, c in enumerate(able):
        x, y = spot(c)
        titles[f"c{i}"] = (
            f"{c.strategy.name} {c.strategy.mesh}: {words.in_tokens_per_s(y)}, "
            f"{words.in_seconds(x / 1e3)}, {words.in_bytes(c.timing.memory_bytes.value)}"
        )
        size = 8 + 60 * min(1.0, c.timing.memory_bytes.value / 80e9)
        ax.scatter([x], [y], s=size, color=SERIES[0] if c.compiled else MUTED,
                   alpha=0.9 if c.compiled else 0.35, linewidths=0, gid=f"c{i}")  # fmt: skip
    best = sorted(search.frontier, key=spot)
    if best:
        xs, ys = zip(*map(spot, best), strict=True)
        ax.step(xs, ys, where="post", color=SERIES[1], linewidth=1.2)
        for c in best[:4]:
            ax.annotate(f"{c.strategy.name}\n{c.strategy.mesh}", spot(c), fontsize=SMALL,
                        color=INK, xytext=(4, -12), textcoords="offset points")  # fmt: skip
    ax.set_xlabel("TPOT, ms" if search.request.output_len > 1 else "TTFT, ms", color=INK)
    ax.set_ylabel("output tokens/s", color=INK)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    said = f"{len(able)} candidates, {len(best)} on the frontier of throughput and TPOT"
    return to_svg(figure, "frontier", said, titles)


def memory_plot(search: TrainSearch, cluster: Cluster) -> str:
    """Plot every way to train: tokens/s over memory per device, and the memory it may need."""
    figure, (ax,) = new_figure(_WIDTH, _HEIGHT)
    ranked = search.ranked
    titles = {}
    for i, c in enumerate(ranked):
        x, y = c.timing.memory_bytes.value / 1e9, c.timing.tokens_per_s.value / cluster.devices
        ax.scatter([x], [y], s=26, color=SERIES[0] if c.compiled else MUTED,
                   alpha=0.9 if c.compiled else 0.35, linewidths=0, gid=f"c{i}")  # fmt: skip
        titles[f"c{i}"] = (
            f"{c.strategy.name} {c.strategy.mesh}: {words.in_tokens_per_s(y)} per GPU, {x:.3g} GB"
        )
    usable = min(search.request.max_bytes or cluster.usable_bytes, cluster.usable_bytes)
    ax.axvline(usable / 1e9, color=SERIES[1], linewidth=1.2)
    ax.set_xlabel("GB per device", color=INK)
    ax.set_ylabel("tokens/s per GPU", color=INK)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_ylim(bottom=0)
    said = f"{len(ranked)} ways to train, {sum(c.fits for c in ranked)} of which fit a device"
    return to_svg(figure, "memory", said, titles)


def regime_plot(regime: RegimeMap, number: int) -> str:
    """Plot a map of winners; the larger the mark, the larger the winner's lead."""
    figure, (ax,) = new_figure(_WIDTH, _HEIGHT)
    xs = sorted({p.x for p in regime.points})
    ys = sorted({p.y for p in regime.points})
    names = sorted({p.winner for p in regime.points if p.winner})
    for i, name in enumerate(names):
        mine = [p for p in regime.points if p.winner == name]
        ax.scatter(
            [xs.index(p.x) for p in mine], [ys.index(p.y) for p in mine],
            s=[40 + 160 * min(1.0, math.log2(p.lead)) for p in mine],
            marker=_MARKS[i % len(_MARKS)], color=SERIES[i % len(SERIES)], label=name, linewidths=0,
        )  # fmt: skip
    nothing = [p for p in regime.points if not p.winner]
    if nothing:
        ax.scatter([xs.index(p.x) for p in nothing], [ys.index(p.y) for p in nothing], s=14,
                   marker="x", color=MUTED, label="nothing fits", linewidths=0.8)  # fmt: skip
    ax.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    ax.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    ax.set_xlabel(regime.x, color=INK)
    ax.set_ylabel(regime.y, color=INK)
    ax.margins(0.08)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL,
              labelcolor=INK)  # fmt: skip
    return to_svg(figure, f"regime-{number}", f"fastest strategy over {regime.x} and {regime.y}")
