"""The table behind the explorer: the analytical model on a grid, and interpolation between.

A cell of the table is the time of one tick: a microbatch passes through a device's layers. Any
batch follows from it, as so many ticks as it has microbatches, and some more to fill a pipeline.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

import numpy as np

from parallax.analytic import estimate, estimate_bytes
from parallax.cost import Rates, estimate_cost, rates_for
from parallax.meshes.cluster import Cluster, cluster, scaled
from parallax.models.config import ModelConfig
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import Prefill
from parallax.strategies import STRATEGIES, build
from parallax.strategy import Strategy
from parallax.workload import Workload

NETWORK = "infiniband_ndr"
LAYERS, QUERIES_PER_KEY, EXPERTS_PER_TOKEN = 64, 4, 4
# Of the interpolated axes, whether parabolas are blended: times have kinks along the others.
SMOOTH = (True, False, True, False)
TERMS = ("compute", "memory", "exposed communication", "launches")
_TERM_OF = {"matrix products": "compute", "attention": "compute", "host copies": "memory"}


@dataclass(frozen=True)
class Axes:
    """The grid: lengths, microbatch, width and bandwidth are interpolated, the others are not.

    Attributes:
      lengths: tokens per sequence. sizes: sequences of a microbatch, per part of the batch.
      widths: d_model. bandwidths: GB/s per GPU between nodes.
      devices, heads, experts: the values that can be chosen; no experts is one MLP.
    """

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
    sizes: tuple[int, ...] = (1, 8, 64)
    widths: tuple[int, ...] = (2048, 6144, 16_384)
    bandwidths: tuple[float, ...] = (12.5, 32.0, 80.0, 200.0)
    devices: tuple[int, ...] = (8, 16, 32, 64)
    heads: tuple[int, ...] = (32, 64)
    experts: tuple[int, ...] = (0, 16, 64)

    @property
    def interpolated(self) -> tuple[tuple[float, ...], ...]:
        """The axes of which any value can be asked for."""
        return self.lengths, self.sizes, self.widths, self.bandwidths


@dataclass(frozen=True)
class Case:
    """One strategy on some devices, with some heads and experts.

    Attributes:
      strategy, devices, heads, experts: the coordinates.
      why_not: why it cannot run; "" if it can.
      parts: parts that the batch is split into. stages: pipeline stages.
      overlaps: whether handoffs overlap once that adds little, see `Pipeline.handoff`.
      mesh: the mesh as a flag names it.
      seconds: seconds of a tick over Axes.interpolated. shares: of each of TERMS, last axis.
      held_bytes: bytes per device over the first three of them.
    """

    strategy: str
    devices: int
    heads: int
    experts: int
    why_not: str = ""
    parts: int = 1
    stages: int = 1
    overlaps: bool = False
    mesh: str = ""
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    held_bytes: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)

    def ticks(self, microbatches: int) -> int:
        """Return the ticks of a forward pass."""
        fill = self.stages - 1
        return microbatches + (2 * fill if self.overlaps and microbatches >= 4 * fill else fill)


@dataclass(frozen=True)
class Place:
    """What a person asks the explorer: a model, its workload and the hardware."""

    length: float
    batch: int
    width: float
    bandwidth: float
    devices: int
    heads: int
    experts: int


@dataclass(frozen=True)
class Found:
    """One strategy at a place, at its fastest microbatch that fits, else at the smallest.

    Attributes:
      case: the strategy.
      size: sequences of a microbatch, per part of the batch.
      seconds: one forward pass of the batch. shares: parts of them, in the order of TERMS.
      held_bytes: bytes per device.
    """

    case: Case
    size: int
    seconds: float
    shares: tuple[float, ...]
    held_bytes: float


def model(width: int, heads: int, experts: int) -> ModelConfig:
    """Return the explorer's model: dense, or experts that take as many FLOPs per token."""
    return ModelConfig(
        "explored", num_layers=LAYERS, d_model=width, num_heads=heads,
        num_kv_heads=heads // QUERIES_PER_KEY, head_dim=width // heads, vocab_size=32_000,
        d_ff=width if experts else EXPERTS_PER_TOKEN * width, mlp="gated", num_experts=experts,
        experts_per_token=EXPERTS_PER_TOKEN,
    )  # fmt: skip


def hardware(devices: int, bandwidth: float) -> Cluster:
    """Return H100 nodes of eight with a bandwidth between nodes in GB/s per GPU."""
    return scaled(cluster(f"h100_2x8@{NETWORK}:{bandwidth * 1000:.0f}MB"), devices)


def tabulate(
    axes: Axes,
    *,
    processes: int = 2,
    on_progress: Callable[[str], None] = lambda line: None,
) -> tuple[Case, ...]:
    """Evaluate the analytical model on the whole grid.

    Cost: some milliseconds per point and strategy; the default grid takes about a minute on two
      cores.
    """
    asked = [
        (axes, name, d, h, e)
        for d, h, e in itertools.product(axes.devices, axes.heads, axes.experts)
        for name in names(d, e)
    ]
    if processes == 1:
        return tuple(_case(*one) for one in asked)
    found = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for case in pool.map(_case, *zip(*asked, strict=True), chunksize=4):
            found.append(case)
            if len(found) % 50 == 0:
                on_progress(f"{len(found)} of {len(asked)} cases")
    return tuple(found)


def names(devices: int, experts: int) -> Iterator[str]:
    """Yield the strategies that differ from each other on so many devices."""
    for name, named in STRATEGIES.items():
        across = name in ("double_ring", "ulysses_ring", "expert_parallel_nodes")
        if named.variant_of or (across and devices <= 8):
            continue
        if experts or not name.startswith("expert_parallel"):
            yield name


def _strategy(name: str, on: Cluster) -> Strategy:
    return build(name, devices=on.devices, node_size=on.gpus_per_node, cluster=on.name)


def _sharded(case: Case, strategy: Strategy, length: int, size: int, width: int, batch: int):
    microbatches = max(1, batch // size)
    workload = Workload(size * microbatches * case.parts, length, microbatches)
    return ShardedTransformer(model(width, case.heads, case.experts), strategy, workload)


def _case(axes: Axes, name: str, devices: int, heads: int, experts: int) -> Case:
    clusters = [hardware(devices, b) for b in axes.bandwidths]
    rates = [rates_for(c) for c in clusters]
    if devices <= 8:  # nothing crosses the network
        clusters, rates = clusters[:1], rates[:1]
    try:
        case, strategy = described(name, devices, heads, experts)
        shape = len(axes.lengths), len(axes.sizes), len(axes.widths)
        seconds = np.zeros((*shape, len(axes.bandwidths)))
        shares, held = np.zeros((*seconds.shape, len(TERMS))), np.zeros(shape)
        for at in np.ndindex(*shape):
            length, size, width = axes.lengths[at[0]], axes.sizes[at[1]], axes.widths[at[2]]
            batch = size * (4 * case.stages if case.stages > 1 else 1)
            sharded = _sharded(case, strategy, length, size, width, batch)
            held[at] = estimate_bytes(sharded)
            first = estimate(Prefill(sharded), clusters[0], rates=rates[0])
            others = zip(clusters[1:], rates[1:], strict=True)
            costs = [first.cost, *(estimate_cost(first.work, c, r) for c, r in others)]
            for n, cost in enumerate(costs):
                where = (*at, n) if len(costs) > 1 else (*at, slice(None))
                seconds[where] = cost.seconds / case.ticks(batch // size)
                shares[where] = _shares(cost.terms)
    except (ValueError, NotImplementedError) as error:
        return Case(name, devices, heads, experts, why_not=_short(error))
    return replace(case, seconds=seconds, shares=shares, held_bytes=held)


def described(name: str, devices: int, heads: int, experts: int) -> tuple[Case, Strategy]:
    """Return a case without its table, and its strategy."""
    strategy = _strategy(name, hardware(devices, 50.0))
    split = strategy.split()
    return Case(
        name, devices, heads, experts, parts=split.count("act_batch"), stages=split.count("layers"),
        overlaps=getattr(strategy.layers, "handoff", "") == "auto", mesh=str(strategy.mesh),
    ), strategy  # fmt: skip


def _short(error: Exception) -> str:
    text = str(error).partition(": ")[2] or str(error)
    return text.split(". ")[0].rstrip(".")


def _shares(terms: Mapping[str, float]) -> list[float]:
    total = sum(terms.values())
    of: dict[str, float] = dict.fromkeys(TERMS, 0.0)
    for name, seconds in terms.items():
        of[_TERM_OF.get(name, name)] += seconds / total
    return list(of.values())


def weights(axis: Sequence[float], x: float, is_smooth: bool) -> list[float]:
    """Return the weight of each node of an axis at x, in the logarithm; held at the ends.

    Args:
      axis: the nodes, increasing.
      x: a place on the axis.
      is_smooth: whether two parabolas are blended, through the neighbours on either side, instead
        of the line between the two nodes around x.
    """
    nodes = [math.log(node) for node in axis]
    t = min(nodes[-1], max(nodes[0], math.log(x)))
    found = [0.0] * len(nodes)
    if len(nodes) == 1:
        return [1.0]
    i = next((i for i in range(len(nodes) - 2, 0, -1) if t >= nodes[i]), 0)
    share = (t - nodes[i]) / (nodes[i + 1] - nodes[i])
    if not is_smooth or len(nodes) == 2:
        found[i], found[i + 1] = 1 - share, share
        return found
    for start, part in ((max(0, i - 1), 1 - share), (min(len(nodes) - 3, i), share)):
        for k in range(start, start + 3):
            others = (nodes[j] for j in range(start, start + 3) if j != k)
            found[k] += part * math.prod((t - o) / (nodes[k] - o) for o in others)
    return found


def interpolate(values: np.ndarray, axes: Sequence[Sequence[float]], at: Sequence[float]):
    """Interpolate over the leading axes, in the logarithms of the coordinates."""
    for axis, x, is_smooth in zip(axes, at, SMOOTH, strict=False):
        values = np.tensordot(weights(axis, x, is_smooth), values, 1)
    return values


def look_up(axes: Axes, case: Case, place: Place, usable_bytes: float) -> Found:
    """Return a strategy at a place, from its table alone."""
    local, found = max(1, place.batch // case.parts), []
    size = 1
    while size <= min(local, axes.sizes[-1]):
        at = (place.length, size, place.width, place.bandwidth)
        held = math.exp(interpolate(np.log(case.held_bytes), axes.interpolated[:3], at[:3]))
        tick = math.exp(interpolate(np.log(case.seconds), axes.interpolated, at))
        shares = np.maximum(0.0, interpolate(case.shares, axes.interpolated, at))
        seconds = tick * case.ticks(local // size)
        found.append(Found(case, size, seconds, tuple(shares / shares.sum()), held))
        size *= 2
    able = [f for f in found if f.held_bytes <= usable_bytes]
    return min(able, key=lambda f: f.seconds) if able else found[0]


def exact(found: Found, place: Place, rates: Rates | None = None) -> tuple[float, float]:
    """Return seconds and bytes by the analytical model, for what `look_up` chose."""
    case, on = found.case, hardware(place.devices, place.bandwidth)
    sharded = _sharded(case, _strategy(case.strategy, on), int(place.length), found.size,
                       int(place.width), max(1, place.batch // case.parts))  # fmt: skip
    cost = estimate(Prefill(sharded), on, rates=rates_for(on, rates)).cost
    return cost.seconds, estimate_bytes(sharded)
