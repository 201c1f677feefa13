"""Measured serving loads beside their predictions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from parallax.analytic.described.regimes import serving_regime
from parallax.analytic.described.serving import serve_cost
from parallax.analytic.described.serving_constants import ServingConstants, server_named
from parallax.cost import Rates
from parallax.cost.measurements import FOLDS, fold_of
from parallax.meshes.cluster import cluster
from parallax.studies.fitting.serving import fit, loads_of
from parallax.studies.validation.models import model_of
from parallax.studies.validation.rows import ServingRow
from parallax.studies.validation.scores import Judged


def judge_serving(
    rows: Iterable[ServingRow],
    software: Callable[[str], ServingConstants] = server_named,
    rates: Rates | None = None,
) -> Iterator[Judged]:
    """Judge the times to the first token and per later token of measured loads that count.

    Args:
      rows: measured loads.
      software: the constants of serving software by name.
      rates: constants of the GPU; None takes those shipped.

    Raises:
      ValueError: unknown software, cluster or model, or degrees that the model cannot have.
    """
    for row in rows:
        if row.excluded:
            continue
        found = serve_cost(
            model_of(row.model), tensor=row.tensor, pipeline=row.pipeline, batch=row.batch,
            prompt_len=row.prompt_len, output_len=row.output_len, cluster=cluster(row.cluster),
            implementation=software(row.implementation), rates=rates,
        )  # fmt: skip
        label = (
            f"{row.model} with {row.implementation}, tensor={row.tensor}, {row.batch} requests of "
            f"{row.prompt_len} + {row.output_len}"
        )
        measured = {"ttft": (found.ttft, row.ttft_s), "tpot": (found.tpot, row.tpot_s)}
        for what, (cost, seconds) in measured.items():
            if seconds is not None:
                regime = serving_regime(what, row.implementation)
                yield Judged(row.source, what, label, cost.seconds, seconds, regime,
                             tensor=row.tensor)  # fmt: skip


def judge_by_folds(rows: Sequence[ServingRow]) -> Iterator[Judged]:
    """Judge each fold's loads with constants fitted to the other four."""
    counted = [row for row in rows if not row.excluded]
    for fold in range(FOLDS):
        fitted = fit(loads_of(row for row in counted if fold_of(row.key) != fold))
        mine = [row for row in counted if fold_of(row.key) == fold]
        yield from (replace(j, fold=fold) for j in judge_serving(mine, fitted.__getitem__))
