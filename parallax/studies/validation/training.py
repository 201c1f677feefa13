"""Measured training steps beside their predictions, with constants that did not see them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from parallax.analytic.described.implementation import Implementation, implementation
from parallax.analytic.described.layout import Layout
from parallax.analytic.described.regimes import memory_regime, training_regime
from parallax.cost.measurements import FOLDS, fold_of
from parallax.meshes.cluster import cluster
from parallax.studies.fitting.described import Steps, fit_nanotron, layout_of, starts, steps_of
from parallax.studies.validation.rows import TrainingRow
from parallax.studies.validation.scores import Judged

Software = Mapping[str, Implementation]


def judge_training(
    table: str, rows: Sequence[TrainingRow], software: Callable[[str], Implementation] = implementation
) -> list[Judged]:
    """Judge the time and memory of measured steps, by constants that were fitted to none of them.

    Args:
      table: name of the table.
      rows: measured steps; those without a figure, or excluded, are left out.
      software: the constants of an implementation by name.

    Raises:
      ValueError: an unknown implementation, cluster or model, or a layout that it cannot have.
    """
    return [judged for _, judged in _judged(table, rows, software, None)]


def judge_by_folds(table: str, rows: Sequence[TrainingRow]) -> list[Judged]:
    """Judge steps of the software that is fitted to them, each fold by a fit to the other four."""
    counted = [row for row in rows if row.seconds and not row.excluded]
    found = []
    for fold in range(FOLDS):
        rest = [row for row in counted if fold_of(row.key) != fold]
        groups = [(start, steps_of([r for r in rest if r.implementation == start.name], start))
                  for start in starts()]  # fmt: skip
        fitted = {made.name: made for made in fit_nanotron(groups)}
        mine = [row for row in counted if fold_of(row.key) == fold]
        found += [judged for _, judged in _judged(table, mine, fitted.__getitem__, fold)]
    return found


def _judged(
    table: str,
    rows: Iterable[TrainingRow],
    software: Callable[[str], Implementation],
    fold: int | None,
) -> Iterable[tuple[TrainingRow, Judged]]:
    groups: Mapping[tuple[str, str], list[TrainingRow]] = defaultdict(list)
    for row in rows:
        if not row.excluded:
            groups[row.implementation, cluster(row.cluster).gpu.name].append(row)
    for (name, _), mine in groups.items():
        made = software(name)
        steps: Steps = steps_of(mine, made)
        seconds, memory = steps.modelled_seconds(made), steps.modelled_bytes(made)
        for n, row in enumerate(mine):
            yield from ((row, judged) for judged in
                        _of_row(table, row, float(seconds[n]), float(memory[n]), fold))  # fmt: skip


def _of_row(
    table: str, row: TrainingRow, seconds: float, memory: float, fold: int | None
) -> Iterable[Judged]:
    layout, nodes = layout_of(row), cluster(row.cluster).nodes
    label = _label(row, layout)
    if row.seconds is not None:
        yield Judged(
            table, "step", label, seconds, row.seconds, training_regime(layout, nodes), fold,
            group=f"{row.model} on {row.cluster}", work=layout.sequences * row.seq_len,
            tensor=row.tensor,
        )  # fmt: skip
    if row.memory_bytes is not None:
        yield Judged(
            table, "memory", label, memory, row.memory_bytes, memory_regime(layout), fold,
            tensor=row.tensor,
        )  # fmt: skip


def _label(row: TrainingRow, layout: Layout) -> str:
    degrees = ("data", "tensor", "pipeline", "context", "expert")
    split = ",".join(f"{name}={getattr(layout, name)}" for name in degrees
                     if getattr(layout, name) > 1)  # fmt: skip
    return (
        f"{row.model} on {row.cluster}, {split or 'one device'}, "
        f"{row.microbatches} x {row.microbatch} of {row.seq_len}"
    )
