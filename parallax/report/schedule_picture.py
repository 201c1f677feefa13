"""Pictures of a pipeline schedule: text for a terminal, and a figure for the report.

One row per stage, one column per tick: F is a forward, B a backward, W gradients of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Protocol

from parallax.report.svg import FONT_SIZE, GRID, INK, MUTED, SERIES, new_figure, to_svg

_LETTERS = {"forward": "F", "backward": "B", "weights": "W"}
_COLOURS = dict(zip(_LETTERS, (SERIES[2], SERIES[1], SERIES[3]), strict=True))
_WIDTH = 7.2
_ROW = 0.3
# More ticks than these leave no room for the numbers of microbatches, or for the text.
_MOST_NUMBERED = 60
_MOST_COLUMNS = 26


class Action(Protocol):
    """One stage's work in one tick."""

    @property
    def kind(self) -> str: ...

    @property
    def microbatch(self) -> int: ...

    @property
    def chunk(self) -> int: ...


class ScheduleTable(Protocol):
    """A schedule as `parallel.schedules.Schedule` has it."""

    @property
    def name(self) -> str: ...

    @property
    def stages(self) -> int: ...

    @property
    def microbatches(self) -> int: ...

    @property
    def virtual_stages(self) -> int: ...

    @property
    def rows(self) -> Sequence[Sequence[Action | None]]: ...

    @property
    def bubble(self) -> float: ...

    @property
    def peak_in_flight(self) -> int: ...

    @property
    def handoffs(self) -> int: ...


def schedule_title(schedule: ScheduleTable) -> str:
    """Return a schedule's sizes and figures in one line."""
    chunks = f" x {schedule.virtual_stages} chunks" if schedule.virtual_stages > 1 else ""
    return (
        f"{schedule.name}: {schedule.stages} stages{chunks}, {schedule.microbatches} microbatches, "
        f"{len(schedule.rows)} ticks; bubble {100 * schedule.bubble:.3g} %, at most "
        f"{schedule.peak_in_flight} in flight, {schedule.handoffs} handoffs each way"
    )


def schedule_text(schedule: ScheduleTable, most: int = _MOST_COLUMNS) -> str:
    """Return a schedule as text: a title, and one line per stage, `F0 F1 .  B0` and so on.

    Args:
      schedule: the table.
      most: ticks that are written; of a longer table the first.
    """
    rows = schedule.rows[:most]
    cells = [[_cell(schedule, action) for action in row] for row in rows]
    width = max(len(cell) for row in cells for cell in row)
    more = " ..." if len(schedule.rows) > most else ""
    lines = [
        f"stage {stage:<3}" + " ".join(row[stage].ljust(width) for row in cells).rstrip() + more
        for stage in range(schedule.stages)
    ]
    return "\n".join([schedule_title(schedule), *lines])


def _cell(schedule: ScheduleTable, action: Action | None) -> str:
    """Return an action in a few letters; a chunk is a letter behind the microbatch."""
    if action is None:
        return "."
    chunk = chr(ord("a") + action.chunk) if schedule.virtual_stages > 1 else ""
    return f"{_LETTERS[action.kind]}{action.microbatch}{chunk}"


def schedule_svg(schedule: ScheduleTable, name: str = "schedule") -> str:
    """Return a schedule as an inline <svg>, one stage per row; later chunks are paler.

    Args:
      schedule: the table.
      name: a name unique in the page.
    """
    stages, ticks = schedule.stages, len(schedule.rows)
    figure, (ax,) = new_figure(_WIDTH, 0.75 + _ROW * stages)
    for kind, letter in _LETTERS.items():
        for chunk in range(schedule.virtual_stages):
            spans = [
                (tick, stage)
                for tick, row in enumerate(schedule.rows)
                for stage, action in enumerate(row)
                if action is not None and (action.kind, action.chunk) == (kind, chunk)
            ]
            for stage in sorted({stage for _, stage in spans}):
                ax.broken_barh(
                    [(tick + 0.04, 0.92) for tick, s in spans if s == stage], (stage - 0.42, 0.84),
                    facecolors=_COLOURS[kind], edgecolors="none",
                    alpha=1.0 - 0.5 * chunk / schedule.virtual_stages,
                    label=f"{kind} ({letter})" if (stage, chunk) == (0, 0) else None,
                )  # fmt: skip
    if ticks <= _MOST_NUMBERED:
        for tick, row in enumerate(schedule.rows):
            for stage, action in enumerate(row):
                if action is not None:
                    ax.text(tick + 0.5, stage, str(action.microbatch), ha="center", va="center",
                            color=INK, fontsize=FONT_SIZE - 3)  # fmt: skip
    ax.set_xlim(0, ticks)
    ax.set_ylim(stages - 0.5, -0.5)
    ax.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_xlabel("tick", color=MUTED, fontsize=FONT_SIZE)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.02), ncols=3, frameon=False,
              fontsize=FONT_SIZE - 0.5, labelcolor=INK, handlelength=1, handleheight=1,
              columnspacing=1.4, borderaxespad=0)  # fmt: skip
    return to_svg(figure, name, f"Pipeline schedule {schedule_title(schedule)}")


def schedule_section(schedule: ScheduleTable, name: str = "schedule") -> str:
    """Return a schedule's figure with its title as HTML, for a report's page."""
    caption = f"<figcaption>{escape(schedule_title(schedule))}</figcaption>"
    return f"<figure>{caption}{schedule_svg(schedule, name)}</figure>"
