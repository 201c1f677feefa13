"""Measured training steps beside their predictions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from parallax.analytic.described.implementation import Implementation, implementation
from parallax.analytic.described.layout import Layout
from parallax.analytic.described.regimes import memory_regime, training_regime
from parallax.analytic.described.training import train_cost
from parallax.analytic.described.training_memory import train_memory
from parallax.cost import Rates
from parallax.cost.measurements import FOLDS, fold_of
from parallax.meshes.cluster import cluster, on_network
from parallax.studies.fitting.described import fit_software, layout_of
from parallax.studies.validation.models import model_of
from parallax.studies.validation.rows import TrainingRow
from parallax.studies.validation.scores import Judged


def judge_training(
    rows: Iterable[TrainingRow],
    software: Callable[[str], Implementation] = implementation,
    rates: Rates | None = None,
) -> Iterator[Judged]:
    """Judge the time and the memory of measured steps that count, where they were measured.

    Args:
      rows: measured steps.
      software: the constants of an implementation by name.
      rates: constants of the GPU; None takes those shipped.

    Raises:
      ValueError: an unknown implementation, cluster, network or model, or a layout that the model
        or the cluster cannot have; names the row's setting.
    """
    for row in rows:
        if row.excluded:
            continue
        layout, label = layout_of(row), _label(row)
        where = on_network(cluster(row.cluster), row.network or None)
        config, made = model_of(row.model), software(row.implementation)
        memory = train_memory(config, layout, row.seq_len, made).total
        if row.seconds is not None:
            try:
                cost = train_cost(config, layout, row.seq_len, where, made, rates)
            except ValueError as error:
                raise ValueError(f"{label}: {error}") from None
            # Who ranks layouts takes none that is not predicted to fit.
            fits = memory <= where.usable_bytes
            yield Judged(
                row.source, "step", label, cost.seconds, row.seconds,
                training_regime(layout, where.nodes),
                group=f"{row.model} on {row.cluster}" if fits else "",
                work=layout.sequences * row.seq_len, tensor=row.tensor,
            )  # fmt: skip
        if row.memory_bytes is not None:
            yield Judged(row.source, "memory", label, memory, row.memory_bytes,
                         memory_regime(layout), tensor=row.tensor)  # fmt: skip


def judge_by_folds(rows: Sequence[TrainingRow]) -> Iterator[Judged]:
    """Judge each fold's steps with constants fitted to the other four."""
    for fold in range(FOLDS):
        fitted = fit_software([row for row in rows if fold_of(row.key) != fold])
        mine = [row for row in rows if fold_of(row.key) == fold]
        yield from (replace(j, fold=fold) for j in judge_training(mine, fitted.__getitem__))


def _label(row: TrainingRow) -> str:
    layout: Layout = layout_of(row)
    degrees = ("data", "tensor", "pipeline", "context", "expert")
    split = ",".join(f"{name}={getattr(layout, name)}" for name in degrees
                     if getattr(layout, name) > 1)  # fmt: skip
    return (
        f"{row.model} on {row.cluster}, {split or 'one device'}, "
        f"{row.microbatches} x {row.microbatch} of {row.seq_len}"
    )
