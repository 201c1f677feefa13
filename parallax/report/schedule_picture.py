"""Pictures of a pipeline schedule: text for a terminal, and a figure for the report.

One row per stage, one column per tick: F is a forward, B a backward, W gradients of weights.
"""

from __future__ import annotations

from parallax.report import words
from parallax.report.svg import FONT_SIZE, GRID, INK, MUTED, ON, SERIES, SMALL, new_figure, to_svg
from parallax.results.training_facts import Action, ScheduleTable

_LETTERS = {"forward": "F", "backward": "B", "weights": "W"}
_COLOURS = dict(zip(_LETTERS, (SERIES[2], SERIES[1], SERIES[3]), strict=True))
_WIDTH = 9.6
_ROW = 0.3
# More ticks than these leave no room for the numbers of microbatches, or for the text.
_MOST_NUMBERED = 40
_MOST_COLUMNS, _MOST_LINES, _WIDEST = 26, 8, 96
# Of a longer table, the first and the last ticks are drawn, this many ticks apart.
_MOST_DRAWN, _GAP = 120, 5


def schedule_title(schedule: ScheduleTable) -> str:
    """Return a schedule's sizes and figures in one line."""
    chunks = f" x {schedule.virtual_stages} chunks" if schedule.virtual_stages > 1 else ""
    return (
        f"{schedule.name}: {schedule.stages} stages{chunks}, "
        f"{words.counted(schedule.microbatches, 'microbatch', 'microbatches')}, "
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

    Of a long table the first and the last ticks are drawn, with a gap between them.

    Args:
      schedule: the table.
      name: a name unique in the page.
    """
    stages, drawn = schedule.stages, _drawn(len(schedule.rows))
    actions = [
        (x, stage, action)
        for x, tick in drawn
        for stage, action in enumerate(schedule.rows[tick])
        if action is not None
    ]
    figure, (ax,) = new_figure(_WIDTH, 0.75 + _ROW * stages)
    for kind, letter in _LETTERS.items():
        for chunk in range(schedule.virtual_stages):
            spans = [(x, s) for x, s, a in actions if (a.kind, a.chunk) == (kind, chunk)]
            for stage in sorted({stage for _, stage in spans}):
                ax.broken_barh(
                    [(x + 0.04, 0.92) for x, s in spans if s == stage], (stage - 0.42, 0.84),
                    facecolors=_COLOURS[kind], edgecolors="none",
                    alpha=1.0 - 0.5 * chunk / schedule.virtual_stages,
                    label=f"{kind} ({letter})" if (stage, chunk) == (0, 0) else None,
                )  # fmt: skip
    if len(drawn) <= _MOST_NUMBERED:
        for x, stage, action in actions:
            ax.text(x + 0.5, stage, str(action.microbatch), ha="center", va="center",
                    color=ON, fontsize=SMALL)  # fmt: skip
    ax.set_xlim(0, drawn[-1][0] + 1)
    ax.set_ylim(stages - 0.5, -0.5)
    ax.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
    if len(drawn) < len(schedule.rows):
        marked = [drawn[i] for i in range(0, len(drawn), 10)]
        ax.set_xticks([x for x, _ in marked], [f"{tick:,}" for _, tick in marked])
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_xlabel("tick", color=MUTED, fontsize=FONT_SIZE)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.02), ncols=3, frameon=False,
              fontsize=SMALL, labelcolor=INK, handlelength=1, handleheight=1,
              columnspacing=1.4, borderaxespad=0)  # fmt: skip
    return to_svg(figure, name, f"Pipeline schedule {schedule_title(schedule)}")


def _drawn(ticks: int) -> list[tuple[int, int]]:
    """Return the place on the axis and the number of each tick that is drawn."""
    if ticks <= _MOST_DRAWN:
        return [(tick, tick) for tick in range(ticks)]
    end = _MOST_DRAWN // 2
    first, last = range(end), range(ticks - end, ticks)
    return [*enumerate(first), *((end + _GAP + i, tick) for i, tick in enumerate(last))]


def schedule_caption(schedule: ScheduleTable) -> str:
    """Return a schedule's title, and what is drawn of a long one."""
    ticks = len(schedule.rows)
    cut = f"; of {ticks:,} ticks the first and last {_MOST_DRAWN // 2} are drawn"
    return schedule_title(schedule) + (cut if ticks > _MOST_DRAWN else "")


def is_small(schedule: ScheduleTable) -> bool:
    """Return whether a terminal has room for a schedule's text."""
    if len(schedule.rows) > _MOST_COLUMNS or schedule.stages > _MOST_LINES:
        return False
    return max(map(len, schedule_text(schedule).splitlines()[1:])) <= _WIDEST
