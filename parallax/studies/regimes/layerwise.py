"""The study of where layer-wise deployment wins: every place of a grid, by the analytical model.

It is compared with the papers' baseline (tensor parallelism x pipeline) and with data parallelism,
which sends nothing, with the same weights in the same format.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from parallax.analytic import PackedWeights, Unpacking, weight_reads
from parallax.analytic.fastest import fastest
from parallax.cost import Rates, rates_for
from parallax.meshes.cluster import Cluster, cluster
from parallax.models.config import ModelConfig
from parallax.programs.steps import make_step
from parallax.requests.naming import resolve_rates
from parallax.rules import Phase
from parallax.strategies import build, data_parallel, tensor_pipeline
from parallax.strategy import Strategy
from parallax.studies.regimes.places import (
    BASELINE,
    GROUP,
    HEAD_DIM,
    LAYERWISE,
    NAMES,
    NO_COMMUNICATION,
    PIPELINES,
    STORED,
    Attention,
    Grid,
    Place,
)
from parallax.workload import Workload


def study(
    grid: Grid,
    on_progress: Callable[[str], None] = lambda line: None,
    *,
    rates: Rates | str | Path | None = None,
) -> tuple[Place, ...]:
    """Evaluate every place of the grid.

    Args:
      grid: the grid of places.
      on_progress: called with a line whenever something starts.
      rates: constants of the clusters' GPU, or a file of them; None takes those shipped.

    Raises:
      ValueError: rates of another GPU than a cluster's.

    Cost: some ten milliseconds per place and strategy.
    """
    places: list[Place] = []
    clusters = {name: cluster(name) for name in grid.clusters}
    given = {name: resolve_rates(rates, target) for name, target in clusters.items()}
    for name, phase in itertools.product(grid.clusters, grid.phases):
        on_progress(f"{name}: {phase}")
        target, constants = clusters[name], given[name]
        for attention, stored in itertools.product(grid.attentions, grid.stored):
            for unpacking in grid.unpackings if STORED[stored] else ("",):
                places += _map(grid, target, phase, attention, stored, unpacking, constants)
    return tuple(places)


def _map(
    grid: Grid, cluster: Cluster, phase: Phase, attention: Attention, stored: str,
    unpacking: Unpacking | Literal[""], rates: Rates | None,
) -> Iterator[Place]:  # fmt: skip
    weights = PackedWeights(STORED[stored], unpacking or "xla")
    for depth, width, batch in itertools.product(grid.depths, grid.widths, grid.batches):
        config = model(width, attention, depth)
        seconds, steady, why_not, hits = {}, {}, {}, 0.0
        for name in NAMES:
            try:
                strategy = strategy_for(name, config, cluster, batch)
                step = make_step(config, strategy, Workload(batch, grid.seq_len), phase)
                best = fastest(step, cluster, weights=weights, rates=rates)
            except (ValueError, NotImplementedError) as error:
                why_not[name] = str(error)
                continue
            seconds[name] = best.estimate.cost.seconds
            if name in PIPELINES:
                steady[name] = best.steady_s
            if name == LAYERWISE:
                constants = rates_for(cluster, rates)
                hits = weight_reads(best.estimate.work, cluster, constants).hit_rate
        yield Place(cluster.name, phase, attention, stored, unpacking, depth, batch, width, seconds,
                    steady, hits, why_not)  # fmt: skip


def model(width: int, attention: Attention, depth: int) -> ModelConfig:
    """Return a model in the shape of the compressed paper, at any width.

    It has gated layers, an MLP four times as wide, and heads of 128.
    """
    heads = width // HEAD_DIM
    return ModelConfig(
        f"{width} wide, {attention}", num_layers=depth, d_model=width, num_heads=heads,
        num_kv_heads=heads if attention == "MHA" else heads // GROUP, head_dim=HEAD_DIM,
        d_ff=4 * width, vocab_size=32_000, mlp="gated",
    )  # fmt: skip


def strategy_for(name: str, config: ModelConfig, cluster: Cluster, batch: int) -> Strategy:
    """Return a strategy over the whole cluster.

    Data parallelism uses a number of devices that divides the batch. Tensor parallelism keeps all
    keys on every device if the device count does not divide the key heads.
    """
    if name == NO_COMMUNICATION:
        return data_parallel(math.gcd(batch, cluster.devices))
    made = build(
        name, devices=cluster.devices, node_size=cluster.gpus_per_node, cluster=cluster.name
    )
    if name != BASELINE or config.num_kv_heads % made.mesh["tensor"] == 0:
        return made
    stages = dict(made.mesh.axes).get("stage", 1)
    return tensor_pipeline(made.mesh["tensor"], stages, split_kv_heads=False)
