"""The validation of all shipped predictions, or of a user's table of measured steps."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from parallax.analytic.described.regimes import bar_of
from parallax.cost import Rates
from parallax.lenses.child import run_in_child
from parallax.studies.fitting.kernels import HeldOut, held_out_terms
from parallax.studies.fitting.links import FittedLinks, fit_links
from parallax.studies.validation import serving, training
from parallax.studies.validation.bars import with_bars
from parallax.studies.validation.kernels import judge_kernels
from parallax.studies.validation.links import judge_between, judge_inside
from parallax.studies.validation.models import TABLES
from parallax.studies.validation.results import Section, Validation
from parallax.studies.validation.rows import ServingRow, TrainingRow, read_table
from parallax.studies.validation.scores import Judged

Progress = Callable[[str], None]
FIGURES = {
    "step": "time of a training step", "memory": "memory of a training step",
    "ttft": "time to the first token", "tpot": "time per output token",
}  # fmt: skip
FOLDED, UNSEEN = "five folds", "none fitted"
# Software whose constants are fitted to steps of the table; the others' steps are only judged.
FITTED_SOURCES = ("nanotron_grid", "mpt_a100_80gb", "mpt_a100_40gb")


def validate(
    table: str | Path | None = None,
    *,
    rates: Rates | str | Path | None = None,
    on_progress: Progress = lambda line: None,
) -> Validation:
    """Hold the predictions against measurements, as `parallax validate` does.

    Args:
      table: a table of measured steps; None takes every published measurement that is shipped.
      rates: constants of the GPU, or a file that `parallax calibrate` wrote; None takes those
        shipped. Only with a table.
      on_progress: called with a line whenever something starts.

    Raises:
      ValueError: a table that cannot be read or described, or rates without a table.
    """
    if table is not None:
        return _of_table(Path(table), Rates.load(rates) if isinstance(rates, str | Path) else rates)
    if rates is not None:
        raise ValueError(
            "rates are for a table of your own: without one, constants are fitted again in folds. "
            "Leave them out, or give a table."
        )
    with ThreadPoolExecutor(1) as beside:
        links = beside.submit(run_in_child, _links, environment={}, on_progress=on_progress)
        on_progress("kernels")
        kernels = list(held_out_terms())
        steps = step_sections(on_progress)
        return Validation((*kernel_sections(kernels), *link_sections(links.result()), *steps))


def _links(*, on_progress: Progress) -> FittedLinks:
    """Fit the links, half of all the work; runs in a child."""
    on_progress("collectives")
    return fit_links()


def kernel_sections(kernels: Iterable[HeldOut]) -> tuple[Section, ...]:
    """Return a section for each term of kernels."""
    judged = judge_kernels(kernels)
    return tuple(Section(term, FOLDED, tuple(with_bars(rows))) for term, rows in judged.items())


def link_sections(links: FittedLinks) -> tuple[Section, ...]:
    """Return the sections of collectives: inside a node, and between nodes."""
    return (
        Section("Collectives inside a node", FOLDED, tuple(with_bars(judge_inside(links)))),
        Section("Collectives between nodes of a named network", FOLDED,
                tuple(with_bars(judge_between(links)))),
    )  # fmt: skip


def step_sections(on_progress: Progress) -> tuple[Section, ...]:
    """Return the sections of published training and serving steps."""
    on_progress("training steps")
    steps = [r for r in read_table(TABLES / "train.csv") if isinstance(r, TrainingRow)]
    folded = list(training.judge_by_folds([r for r in steps if r.source in FITTED_SOURCES]))
    unseen = list(training.judge_training(r for r in steps if r.source not in FITTED_SOURCES))
    on_progress("serving")
    loads = [r for r in read_table(TABLES / "serve.csv") if isinstance(r, ServingRow)]
    served = list(serving.judge_by_folds(loads))
    return (*_by_source(folded, FOLDED), *_by_source(unseen, UNSEEN), *_by_figure(served))


def _by_source(rows: Sequence[Judged], how: str) -> tuple[Section, ...]:
    sections = []
    for source in dict.fromkeys(row.table for row in rows):
        for what in ("step", "memory"):
            mine = [row for row in rows if (row.table, row.figure) == (source, what)]
            if mine:
                title = f"{FIGURES[what].capitalize()}, {source}"
                sections.append(Section(title, how, tuple(with_bars(mine))))
    return tuple(sections)


def _by_figure(rows: Sequence[Judged]) -> tuple[Section, ...]:
    return tuple(
        Section(FIGURES[what].capitalize(), FOLDED,
                tuple(with_bars([row for row in rows if row.figure == what])))
        for what in ("tpot", "ttft")
    )  # fmt: skip


def _of_table(table: Path, rates: Rates | None) -> Validation:
    rows = read_table(table)
    counted = [row for row in rows if not row.excluded]
    if not counted:
        raise ValueError(f"table {table.name}: no row counts. Give at least one measured step.")
    judged: list[Judged] = []
    steps = [row for row in counted if isinstance(row, TrainingRow)]
    loads = [row for row in counted if isinstance(row, ServingRow)]
    judged += training.judge_training(steps, rates=rates)
    judged += serving.judge_serving(loads, rates=rates)
    barred = [_shipped_bar(row) for row in judged]
    sections = tuple(
        Section(words.capitalize(), UNSEEN, tuple(row for row in barred if row.figure == what))
        for what, words in FIGURES.items() if any(row.figure == what for row in judged)
    )  # fmt: skip
    return Validation(sections, shows_worst=True)


def _shipped_bar(row: Judged) -> Judged:
    """Return the row with the bar that ships for its regime, if there is one."""
    bar = bar_of(row.regime)
    if bar is None:
        return row
    return dataclasses.replace(row, low=row.modelled * bar.low, high=row.modelled * bar.high)
