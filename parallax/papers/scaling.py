"""The scaling to as many layers as devices: tokens, joules, cache use, memory use and hit rate."""

import functools
import math
from collections.abc import Iterator

from parallax.analytic import PackedWeights, weight_reads
from parallax.analytic.fastest import Fastest, fastest
from parallax.analytic.packed_weights import layer_weight_bytes
from parallax.cost import error_bar, joules, rates_for
from parallax.meshes.cluster import Cluster, cluster, scaled
from parallax.models.config import ModelConfig
from parallax.papers.footprints import PAPER_FORMATS
from parallax.papers.paper import Claim, Paper
from parallax.papers.results import ScaleRow
from parallax.programs.steps import make_step
from parallax.results.lens_results import Figure
from parallax.rules import Phase
from parallax.strategies import build
from parallax.strategy import Strategy
from parallax.workload import Workload

LAYERS = (8, 16, 32, 64)
_PUBLISHED = 16  # layers of the papers' own experiments


@functools.lru_cache(maxsize=8)
def scale_rows(
    paper: Paper, layers: tuple[int, ...] = LAYERS, where: Cluster | None = None
) -> tuple[ScaleRow, ...]:
    """Estimate layer-wise runs, dense and packed, beside the baseline on as many devices.

    Args:
      paper: the paper whose model, batch, length, baseline and figures are used.
      layers: numbers of layers; each takes as many devices of the paper's cluster.
      where: another cluster to scale instead.

    Raises:
      ValueError: a number of layers is not a whole number of nodes.

    Cost: a second or two, by the analytical model.
    """
    where = where or cluster(paper.cluster)
    return tuple(
        row
        for n in layers
        for phase in ("prefill", "decode")
        for row in _rows(paper, n, phase, scaled(where, n))
    )


def _rows(paper: Paper, layers: int, phase: Phase, where: Cluster) -> Iterator[ScaleRow]:
    config = paper.config.replace(num_layers=layers)
    dense = (config.dtype, config.dtype)
    for name, formats, weights in (
        (paper.strategies[0], dense, PackedWeights()), ("layerwise", dense, PackedWeights()),
        ("layerwise", PAPER_FORMATS, PackedWeights(PAPER_FORMATS, "xla")),
        ("layerwise", PAPER_FORMATS, PackedWeights(PAPER_FORMATS, "kernel")),
    ):  # fmt: skip
        yield _row(paper, config, name, weights, formats, phase, where)


def _row(
    paper: Paper, config: ModelConfig, name: str, weights: PackedWeights,
    formats: tuple[str, str], phase: Phase, where: Cluster,
) -> ScaleRow:  # fmt: skip
    strategy = build(name, devices=where.devices, node_size=where.gpus_per_node,
                     cluster=where.name)  # fmt: skip
    work, rates = paper.workload, rates_for(where)
    batch, why_not, found = work.batch, "", None
    while batch and found is None:
        try:
            step = make_step(config, strategy, Workload(batch, work.seq_len), phase)
            found = fastest(step, where, weights=weights)
        except ValueError as error:
            why_not = why_not or str(error)
            batch //= 2
    speed = energy = held = hits = None
    if found is not None:
        speed, energy = _speed(found, where)
        held = Figure(found.needed_bytes / where.usable_bytes, "1", "derived")
        reads = weight_reads(found.estimate.work, where, rates)
        hits = Figure(reads.hit_rate, "1", "modelled")
    use = stage_weight_bytes(config, strategy, weights) / where.gpu.l2_bytes
    unpacking = weights.unpacking if weights.formats else ""
    return ScaleRow(
        config.num_layers, name, formats, unpacking, phase, work.batch, batch,
        found.microbatches if found else 0, speed, energy, Figure(use, "1", "derived"), held, hits,
        _claims(paper, name, config.num_layers), why_not,
    )  # fmt: skip


def _speed(found: Fastest, where: Cluster) -> tuple[Figure, Figure]:
    rates, cost, tokens = rates_for(where), found.estimate.cost, found.estimate.tokens
    low, high = error_bar(cost, rates)
    each = joules(cost, rates) * where.devices / tokens
    return (
        Figure(tokens / cost.seconds, "tokens/s", "modelled", tokens / high, tokens / low),
        Figure(each, "J", "modelled"),
    )


def stage_weight_bytes(config: ModelConfig, strategy: Strategy, weights: PackedWeights) -> float:
    """Count the bytes of all layers' matrices on the fullest device, as they are stored."""
    stored, _, _ = layer_weight_bytes(config, strategy.split(), weights)
    return stored * math.ceil(config.num_layers / strategy.split().count("layers"))


def _claims(paper: Paper, strategy: str, layers: int) -> dict[str, Claim]:
    if layers == _PUBLISHED:
        names = {n: n for n in ("TPS", "energy efficiency", "L2 use", "HBM use", "cache hit rate")}
    else:
        names = {"TPS": f"TPS with {layers} layers", "L2 use": "L2 use"}
        if strategy != paper.proposed:
            return {}
    found = {(c.strategy, c.quantity): c for c in paper.claims}
    return {as_: found[strategy, name] for as_, name in names.items() if (strategy, name) in found}
