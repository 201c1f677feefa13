"""The fit of links inside nodes and of named networks, with the errors of rows held out.

Inside a node each GPU has its own rows, by one method; between nodes each network has the rows of
its own sources. What other sources measured on the same hardware is a test. A row's held-out
figure is of a fit to the four folds that it is not in; the constants that are returned are fitted
to all rows.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from parallax.cost.collectives import between_seconds, kind_seconds
from parallax.cost.fitting import fit_link
from parallax.cost.measurements import FOLDS, MeasuredCollective, collectives, fold_of
from parallax.cost.networks import NetworkRates
from parallax.cost.rates import BETWEEN_NODES, COLLECTIVES, LinkRates, Spread
from parallax.meshes.gpus import GPUS
from parallax.meshes.networks import NETWORKS

VERSION = "2026-11-29"
NODE_SOURCE = "aiconfigurator_nccl"
MESSAGES = "vidur_network_h100"
# A message between two nodes starts in so many seconds, whatever the network (MESSAGES).
MESSAGE_START_S = 2.89e-5
# Sizes below which an array is of a class; NCCL's protocols change about there.
SIZE_CLASSES = {"to 64 KiB": 2**16, "to 1 MiB": 2**20, "to 32 MiB": 2**25, "larger": math.inf}
# Fewer rows give no quantiles of their own.
_LEAST_ROWS = 20
_QUANTILES = 0.09, 0.91


@dataclass(frozen=True)
class NetworkSources:
    """Who measured a network.

    Attributes:
      sources: ids of its rows' sources.
      tree: whether its all-reduce exceeds a ring over all cards, so that it follows trees.
      says: what was measured, in words.
    """

    sources: tuple[str, ...]
    tree: bool
    says: str


NETWORK_SOURCES = {
    "efa": NetworkSources(
        ("aws_nccl_p5", "aws_hyperpod_p5"), True,
        "all-reduce, all-gather and all-to-all on 2 to 32 nodes of 8 H100; another log shows half "
        "of the all-reduce at 256 MiB",
    ),
    "efa_400": NetworkSources(("aws_nccl_p4de",), True, "all-reduce on two nodes of 8 A100"),
    "infiniband_ndr_slow": NetworkSources(
        ("nccl_tests_290",), True, "all-reduce on two nodes of 8 H100, whose owner doubts them"
    ),
    "infiniband_ndr": NetworkSources(
        ("nccl_tests_k8s_h100",), False,
        "all-reduce of 512 MiB and more on two nodes of 8 H100; the start is infiniband_ndr_slow's",
    ),
    "roce": NetworkSources(("nccl_tests_gke_a4",), False, "all-gather on two nodes of 8 B200"),
}  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """A row and what a fit without its fold says.

    Attributes:
      where: the GPU (inside a node) or the network.
      row: the measurement.
      modelled_s: seconds.
    """

    where: str
    row: MeasuredCollective
    modelled_s: float

    @property
    def log_ratio(self) -> float:
        """The logarithm of measured over modelled."""
        return math.log(self.row.seconds / self.modelled_s)

    @property
    def regime(self) -> str:
        """What has an error bar of its own: a GPU's size class, two nodes, or more nodes.

        All GPUs have the same shapes, so that bars by kind and size would rest on few of them.
        """
        if self.row.nodes > 1:
            return "two nodes" if self.row.nodes == 2 else "more nodes"
        size = next(name for name, end in SIZE_CLASSES.items() if self.row.bytes < end)
        return f"{self.where}, {size}"


@dataclass(frozen=True)
class FittedLinks:
    """All links.

    Attributes:
      inside: GPU -> kind of collective and "p2p" -> rates inside a node.
      networks: name -> rates between nodes.
      held_out: every row that was fitted, as its own fold's fit has it.
    """

    inside: Mapping[str, Mapping[str, LinkRates]]
    networks: Mapping[str, NetworkRates]
    held_out: tuple[HeldOut, ...]

    def spread(self, where: str) -> Spread:
        """The 80 % interval of measured over modelled of a GPU or a network.

        Where there are too few rows of its own, that of all networks, or of all GPUs and wider.
        """
        mine = [h.log_ratio for h in self.held_out if h.where == where]
        if len(mine) >= _LEAST_ROWS:
            return interval(mine)
        if where in self.networks:
            return interval(h.log_ratio for h in self.held_out if h.where in self.networks)
        return interval(1.5 * h.log_ratio for h in self.held_out if h.where in GPUS)


def fit_links() -> FittedLinks:
    """Fit the links of every GPU and network that was measured."""
    inside: dict[str, dict[str, LinkRates]] = {}
    held_out: list[HeldOut] = []
    for gpu in GPUS:
        inside[gpu] = {"p2p": messages(gpu)}
        for kind in COLLECTIVES:
            rows = node_rows(gpu, kind)
            if not rows:
                inside[gpu][kind] = _of_h100(inside, gpu, kind)
                continue
            inside[gpu][kind] = fit_kind(rows)
            held_out += out_of_fold(gpu, rows, fit_kind, node_seconds)
    networks: dict[str, NetworkRates] = {}
    for name in NETWORK_SOURCES:
        links, errors = _fit_network(name, inside, networks)
        held_out += errors
        says = f"{NETWORK_SOURCES[name].says}; {_derived(name)}"
        networks[name] = NetworkRates(name, links, Spread(1.0, 1.0), says, VERSION)
    found = FittedLinks(inside, networks, tuple(held_out))
    spreads = {name: replace(r, spread=found.spread(name)) for name, r in networks.items()}
    return replace(found, networks=spreads)


def node_rows(gpu: str, kind: str) -> list[MeasuredCollective]:
    """Return the rows that a GPU's links are fitted to."""
    return [r for r in collectives()
            if (r.source, r.gpu, r.kind, r.nodes) == (NODE_SOURCE, gpu, kind, 1)]  # fmt: skip


def network_rows(name: str, kind: str) -> list[MeasuredCollective]:
    """Return the rows that a network's rates of a kind are fitted to."""
    names = NETWORK_SOURCES[name].sources
    return [r for r in collectives() if r.source in names and r.kind == kind and r.nodes > 1]


def node_seconds(link: LinkRates, row: MeasuredCollective) -> float:
    """Estimate a row inside a node."""
    return kind_seconds(link, row.kind, row.bytes, row.devices)


def fit_kind(rows: Sequence[MeasuredCollective]) -> LinkRates:
    """Fit one kind inside a node; from Hopper on, switches sum all-reduces."""
    gpu = GPUS[rows[0].gpu]
    switches = rows[0].kind == "all-reduce" and gpu.compute_capability >= (9, 0)
    return fit_link(rows, node_seconds, switches=switches)


def messages(gpu: str) -> LinkRates:
    """Fit a message to a neighbour on H100; other GPUs have its start, and their NVLink's rate."""
    rows = [r for r in collectives() if r.source == MESSAGES and r.kind == "p2p" and r.nodes == 1]
    size, seconds = (np.array([getattr(r, name) for r in rows]) for name in ("bytes", "seconds"))
    per_byte, start_s = np.polyfit(size, seconds, 1, w=1 / seconds)
    wire = GPUS[gpu].nvlink_bytes_per_s / GPUS["h100"].nvlink_bytes_per_s
    return LinkRates(_four(max(start_s, 1e-6)), _four(wire / per_byte))


def _of_h100(inside: Mapping[str, Mapping[str, LinkRates]], gpu: str, kind: str) -> LinkRates:
    """Return H100's rates, scaled by NVLink's, for a GPU that nobody measured."""
    link = inside["h100"][kind]
    wire = GPUS[gpu].nvlink_bytes_per_s / GPUS["h100"].nvlink_bytes_per_s
    return replace(link, bytes_per_s=_four(link.bytes_per_s * wire))


def out_of_fold[Link](
    where: str,
    rows: Sequence[MeasuredCollective],
    fit: Callable[[Sequence[MeasuredCollective]], Link],
    seconds: Callable[[Link, MeasuredCollective], float],
) -> list[HeldOut]:
    """Predict every row by a fit to the folds that it is not in."""
    found = []
    for fold in range(FOLDS):
        rest = [r for r in rows if fold_of(r.key) != fold]
        mine = [r for r in rows if fold_of(r.key) == fold]
        if mine and rest:
            link = fit(rest)
            found += [HeldOut(where, r, seconds(link, r)) for r in mine]
    return found


def interval(log_ratios: Iterable[float]) -> Spread:
    """Compute the 80 % interval of ratios, with a little margin and at least 1 % to each side."""
    ends = np.quantile(list(log_ratios), _QUANTILES)
    return Spread(round(math.exp(min(ends[0], -0.01)), 3), round(math.exp(max(ends[1], 0.01)), 3))


def _fit_network(
    name: str,
    inside: Mapping[str, Mapping[str, LinkRates]],
    networks: Mapping[str, NetworkRates],
) -> tuple[dict[str, LinkRates], list[HeldOut]]:
    """Fit the kinds that were measured on a network, and derive the others."""
    found: dict[str, LinkRates] = {}
    held_out: list[HeldOut] = []
    for kind in COLLECTIVES:
        rows = network_rows(name, kind)
        if not rows:
            continue
        node, tree = inside[rows[0].gpu][kind], NETWORK_SOURCES[name].tree
        fixed = LinkRates(1e-5, 4e10, tree=tree and kind == "all-reduce")
        free = ["start_s", "bytes_per_s"]
        if len(rows) >= _LEAST_ROWS:
            free += ["extra_s", "half_bytes"]
        if max(r.nodes for r in rows) > 2:
            free += ["step_s", "extra_step_s"]
        if min(r.bytes for r in rows) >= SIZE_CLASSES["to 32 MiB"] and len(rows) < _LEAST_ROWS:
            slow = networks["infiniband_ndr_slow"].links[BETWEEN_NODES[kind]]
            fixed, free = replace(fixed, start_s=slow.start_s), ["bytes_per_s"]

        def seconds(link: LinkRates, r: MeasuredCollective, node: LinkRates = node) -> float:
            return between_seconds(link, r.kind, r.bytes, r.devices // r.nodes, r.nodes, node)

        def fit(rows, fixed: LinkRates = fixed, free=tuple(free), seconds=seconds) -> LinkRates:
            return _fit_between(rows, fixed, free, NETWORKS[name].nic_bytes_per_s, seconds)

        found[kind] = fit(rows)
        held_out += out_of_fold(name, rows, fit, seconds)
    return _all_kinds(found), held_out


_BOUNDS = {
    "start_s": (1e-6, 1e-2), "extra_s": (1e-8, 1e-1), "half_bytes": (1e3, 1e10),
    "step_s": (1e-8, 1e-3), "extra_step_s": (1e-8, 1e-2),
}  # fmt: skip


def _fit_between(
    rows: Sequence[MeasuredCollective],
    fixed: LinkRates,
    free: Sequence[str],
    peak: float,
    seconds: Callable[[LinkRates, MeasuredCollective], float],
) -> LinkRates:
    """Fit the `free` constants of a kind between nodes; cards move at most `peak` bytes/s."""
    bounds = _BOUNDS | {"bytes_per_s": (peak / 50, peak)}
    low, high = (np.log([bounds[name][side] for name in free]) for side in (0, 1))

    def link(x: np.ndarray) -> LinkRates:
        return replace(fixed, **dict(zip(free, np.exp(x).tolist(), strict=True)))

    def residuals(x: np.ndarray) -> list[float]:
        tried = link(x)
        return [math.log(seconds(tried, r) / r.seconds) for r in rows]

    fits = []
    # From slow cards too: links inside nodes may hide what a faster rate does.
    for share, half in itertools.product((0.1, 0.8), (1e6, 1e8)):
        begin = {"start_s": 3e-5, "bytes_per_s": share * peak, "extra_s": 2e-4, "half_bytes": half,
                 "step_s": 1e-5, "extra_step_s": 1e-5}  # fmt: skip
        fits.append(least_squares(
            residuals, np.log([begin[name] for name in free]), loss="soft_l1", f_scale=0.05,
            bounds=(low, high),
        ))  # fmt: skip
    best = link(min(fits, key=lambda fit: fit.cost).x)
    return replace(best, **{name: _four(getattr(best, name)) for name in free})


def _all_kinds(found: Mapping[str, LinkRates]) -> dict[str, LinkRates]:
    """Return the rates of every kind: a ring's all-reduce is a reduce-scatter and an all-gather."""
    gather = found.get("all-gather") or _starts(found["all-reduce"], 0.5)
    kinds = {
        "all-reduce": _starts(gather, 2.0), "all-gather": gather, "reduce-scatter": gather,
        "all-to-all": gather,
    } | dict(found)  # fmt: skip
    return {
        "network": LinkRates(MESSAGE_START_S, gather.bytes_per_s),
        **{BETWEEN_NODES[kind]: link for kind, link in kinds.items()},
    }


def _starts(link: LinkRates, times: float) -> LinkRates:
    names = ("start_s", "step_s", "extra_s", "extra_step_s")
    return replace(link, tree=False, **{n: _four(times * getattr(link, n)) for n in names})


def _derived(name: str) -> str:
    kinds = [kind for kind in COLLECTIVES if not network_rows(name, kind)]
    return f"{', '.join(kinds)} and messages follow from these"


def _four(value: float) -> float:
    return float(f"{value:.4g}")
