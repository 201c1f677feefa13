"""Where layer-wise deployment wins and where not: every place of a grid, by closed form.

Beside it stand the papers' baseline (tensor parallelism x pipeline) and data parallelism, which
sends nothing, with the same weights in the same format.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from parallax.cost import Rates, rates_of
from parallax.estimate import PackedWeights, Unpacking, weight_reads
from parallax.estimate.fastest import Phase, fastest
from parallax.meshes.cluster import Cluster, cluster
from parallax.models.config import ModelConfig
from parallax.naming import resolve_rates
from parallax.strategies import build, data_parallel, tensor_pipeline
from parallax.strategy import Strategy

LAYERWISE, BASELINE, NO_COMMUNICATION = "layerwise", "tensor_pipeline", "data_parallel"
NAMES = (LAYERWISE, BASELINE, NO_COMMUNICATION)
PIPELINES = (LAYERWISE, BASELINE)
Attention = Literal["MHA", "GQA"]
HEAD_DIM, GROUP = 128, 8  # queries that share a key in GQA
# Formats of the attention's and of the MLP's matrices, by the name of the storage.
STORED: dict[str, tuple[str, str] | None] = {
    "float16": None,
    "int8": ("int8", "int8"),
    "int8, MLP int8+2:4": ("int8", "int8+2:4"),
    "int4": ("int4", "int4"),
    "int4+2:4": ("int4+2:4", "int4+2:4"),
}


@dataclass(frozen=True)
class Grid:
    """What is asked: every combination.

    Attributes:
      clusters: by name. phases: prefill, decode.
      attentions: MHA, GQA. stored: names of STORED.
      unpackings: of what is packed: as XLA does, as a kernel would.
      batches: sequences. widths: d_model. depths: layers. seq_len: tokens of a prompt, or in the
        cache.
    """

    clusters: tuple[str, ...] = ("h100_2x8", "h100_nvl16")
    phases: tuple[Phase, ...] = ("prefill", "decode")
    attentions: tuple[Attention, ...] = ("MHA", "GQA")
    stored: tuple[str, ...] = tuple(STORED)
    unpackings: tuple[Unpacking, ...] = ("xla", "kernel")
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    widths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    depths: tuple[int, ...] = (16, 64)
    seq_len: int = 2048

    def __post_init__(self):
        if unknown := set(self.stored) - set(STORED):
            raise ValueError(
                f"regimes: unknown storage {sorted(unknown)}. Use some of: {', '.join(STORED)}."
            )
        if bad := [w for w in self.widths if w % (HEAD_DIM * GROUP)]:
            raise ValueError(
                f"regimes: widths must be multiples of {HEAD_DIM * GROUP} (heads of {HEAD_DIM}, "
                f"{GROUP} to a key in GQA); got {bad}."
            )
        if bad := [n for n in (*self.batches, *self.depths, self.seq_len) if n < 1]:
            raise ValueError(f"regimes: batches, depths and seq_len are at least 1; got {bad}.")

    def replace(self, **changes: Any) -> "Grid":
        """The same with some axes changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Place:
    """One place of the grid (tag: modelled).

    Attributes:
      cluster, phase, attention, stored, unpacking, depth, batch, width: where; unpacking is ""
        where weights are dense.
      seconds: strategy -> of a prefill of the batch, or of one decoding step.
      steady_s: strategy -> the same if other requests kept it full, of PIPELINES.
      hit_rate: layer-wise's weight reads that the L2 cache serves; 0 where it cannot run.
      why_not: strategy -> why it cannot run, or does not fit.
    """

    cluster: str
    phase: str
    attention: str
    stored: str
    unpacking: str
    depth: int
    batch: int
    width: int
    seconds: Mapping[str, float]
    steady_s: Mapping[str, float] = field(default_factory=dict)
    hit_rate: float = 0.0
    why_not: Mapping[str, str] = field(default_factory=dict)

    @property
    def winner(self) -> str:
        """The fastest; "" where nothing runs."""
        return min(self.seconds, key=lambda n: self.seconds[n]) if self.seconds else ""

    def lead_over(self, *others: str) -> float | None:
        """How many times longer the fastest of `others` takes than layer-wise; below 1 layer-wise
        is behind. None where layer-wise or all of them cannot run."""
        them = [self.seconds[n] for n in others if n in self.seconds]
        if LAYERWISE not in self.seconds or not them:
            return None
        return min(them) / self.seconds[LAYERWISE]


def study(
    grid: Grid,
    on_progress: Callable[[str], None] = lambda line: None,
    *,
    rates: Rates | str | Path | None = None,
) -> tuple[Place, ...]:
    """Every place of the grid.

    Args:
      grid: what is asked.
      on_progress: called with a line whenever something starts.
      rates: constants of the clusters' GPU, or a file of them; None takes those shipped.

    Raises:
      ValueError: rates of another GPU than a cluster's.

    Cost: some ten milliseconds a place and strategy.
    """
    found: list[Place] = []
    clusters = {name: cluster(name) for name in grid.clusters}
    given = {name: resolve_rates(rates, where) for name, where in clusters.items()}
    for name, phase in itertools.product(grid.clusters, grid.phases):
        on_progress(f"{name}: {phase}")
        where, constants = clusters[name], given[name]
        for attention, stored in itertools.product(grid.attentions, grid.stored):
            for unpacking in grid.unpackings if STORED[stored] else ("",):
                found += _map(grid, where, phase, attention, stored, unpacking, constants)
    return tuple(found)


def _map(
    grid: Grid, where: Cluster, phase: Phase, attention: Attention, stored: str,
    unpacking: Unpacking | Literal[""], rates: Rates | None,
) -> Iterator[Place]:  # fmt: skip
    weights = PackedWeights(STORED[stored], unpacking or "xla")
    for depth, width, batch in itertools.product(grid.depths, grid.widths, grid.batches):
        config = model(width, attention, depth)
        seconds, steady, why_not, hits = {}, {}, {}, 0.0
        for name in NAMES:
            try:
                strategy = strategy_for(name, config, where, batch)
                best = fastest(
                    config,
                    strategy,
                    where,
                    phase,
                    batch,
                    grid.seq_len,
                    weights=weights,
                    rates=rates,
                )
            except (ValueError, NotImplementedError) as error:
                why_not[name] = str(error)
                continue
            seconds[name] = best.estimate.cost.seconds
            if name in PIPELINES:
                steady[name] = best.steady_s
            if name == LAYERWISE:
                constants = rates or rates_of(where.gpu.name)
                hits = weight_reads(best.estimate.work, where, constants).hit_rate
        yield Place(where.name, phase, attention, stored, unpacking, depth, batch, width, seconds,
                    steady, hits, why_not)  # fmt: skip


def model(width: int, attention: Attention, depth: int) -> ModelConfig:
    """Gated layers, an MLP four times as wide, heads of 128: the compressed paper's shape
    at any width."""
    heads = width // HEAD_DIM
    return ModelConfig(
        f"{width} wide, {attention}", num_layers=depth, d_model=width, num_heads=heads,
        num_kv_heads=heads if attention == "MHA" else heads // GROUP, head_dim=HEAD_DIM,
        d_ff=4 * width, vocab_size=32_000, mlp="gated",
    )  # fmt: skip


def strategy_for(name: str, config: ModelConfig, where: Cluster, batch: int) -> Strategy:
    """The strategy over the whole cluster; data parallelism over as many devices as there are
    sequences. Tensor parallelism keeps all keys on every device where a group has more devices."""
    if name == NO_COMMUNICATION:
        return data_parallel(math.gcd(batch, where.devices))
    made = build(name, devices=where.devices, node_size=where.gpus_per_node, cluster=where.name)
    if name != BASELINE or config.num_kv_heads % made.mesh["tensor"] == 0:
        return made
    stages = dict(made.mesh.axes).get("stage", 1)
    return tensor_pipeline(made.mesh["tensor"], stages, split_kv_heads=False)


def wins(places: Sequence[Place], name: str) -> list[Place]:
    """Places where a strategy is the fastest."""
    return [p for p in places if p.winner == name]
