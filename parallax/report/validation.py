"""Verdicts on the points that a paper itself says must hold: pass, fail or undecided.

They have a list of their own and never change the exit status.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from parallax.meshes.cluster import Cluster, cluster
from parallax.models.config import ModelConfig
from parallax.papers.paper import Paper
from parallax.papers.results import ScaleRow
from parallax.report import words
from parallax.report.claims import other_than_the_papers
from parallax.results.lens_results import StrategyResult
from parallax.workload import Workload

Status = Literal["pass", "fail", "undecided"]
_Decision = tuple[Status, str]

# The share of the growth in devices that has to appear as growth in throughput.
_LINEAR = 0.95
# Bits per weight under INT8 and 2:4 sparsity: half the weights, each with a two-bit position.
_INT8_2_4_BITS = 0.5 * (8 + 2)


@dataclass(frozen=True)
class Verdict:
    """One point with its verdict and, in one line, the figures behind it."""

    statement: str
    status: Status
    evidence: str


@dataclass(frozen=True)
class _Run:
    paper: Paper
    config: ModelConfig
    workload: Workload
    cluster: Cluster
    results: tuple[StrategyResult, ...]
    scale: tuple[ScaleRow, ...]

    @property
    def other(self) -> str:
        """Return why this run's figures cannot be compared with the paper's; "" if they can."""
        return other_than_the_papers(self.paper, self.config, self.workload, self.results)

    def is_measured(self, result: StrategyResult) -> bool:
        """Whether it was timed on the paper's model and GPUs; other times decide nothing."""
        m = result.measurement
        return m is not None and (
            m.model == self.paper.config.name
            and (m.workload.batch, m.workload.seq_len)
            == (self.workload.batch, self.workload.seq_len)
            and m.device == self.cluster.gpu.device_kind
            and m.devices == self.cluster.devices
        )

    def result(self, name: str) -> StrategyResult | None:
        return next((r for r in self.results if r.name == name), None)

    def pair(self, name: str) -> tuple[StrategyResult, StrategyResult] | str:
        """Return that strategy and the baseline, or why they cannot be compared."""
        for wanted in (name, self.paper.strategies[0]):
            if self.result(wanted) is None:
                return f"{wanted} was not run"
        if self.other:
            return self.other
        mine, base = self.result(name), self.result(self.paper.strategies[0])
        assert mine is not None
        assert base is not None
        return mine, base


def verdicts(
    paper: Paper,
    config: ModelConfig,
    workload: Workload,
    cluster_name: str,
    results: tuple[StrategyResult, ...],
    scale: tuple[ScaleRow, ...],
) -> tuple[Verdict, ...]:
    """Decide each of a paper's validation points.

    Args:
      paper: the paper whose points are decided.
      config, workload, cluster_name: what this run ran, and the cluster it is for.
      results: one per strategy that was run.
      scale: the paper's strategies with one layer per device; () if the paper has none.
    """
    run = _Run(paper, config, workload, cluster(cluster_name), results, scale)
    decided = []
    for point in paper.validations:
        name, _, argument = point.check.partition(":")
        status, evidence = CHECKS[name](run, argument)
        decided.append(Verdict(point.statement, status, evidence))
    return tuple(decided)


def _faster(run: _Run, name: str) -> _Decision:
    pair = run.pair(name)
    if isinstance(pair, str):
        return "undecided", pair
    mine, base = pair
    if run.is_measured(mine) and run.is_measured(base):
        assert mine.measurement is not None
        assert base.measurement is not None
        a, b = mine.measurement.step_s, base.measurement.step_s
        text = f"step {words.in_seconds(a.value)} beside {words.in_seconds(b.value)}, measured"
        if a.high is not None and b.low is not None and a.high < b.low:
            return "pass", text
        if a.low is not None and b.high is not None and a.low > b.high:
            return "fail", text
        return "undecided", text + "; the intervals overlap"
    if mine.prediction is None:
        return "undecided", "no time was measured or modelled"
    bound = mine.prediction.bound.tokens_per_s.value
    claimed = next(
        (c.value for c in run.paper.claims if (c.strategy, c.quantity) == (base.name, "TPS")), None
    )
    at_most = f"at most {words.in_tokens_per_s(bound)} (modelled) on {run.cluster.name}"
    if claimed is not None and bound < claimed:
        return "fail", f"{at_most}, below the baseline's claimed {words.in_tokens_per_s(claimed)}"
    return "undecided", f"{at_most}: an upper bound ranks nothing; it needs a measurement"


def _fewer_bytes(run: _Run, name: str) -> _Decision:
    pair = run.pair(name)
    if isinstance(pair, str):
        return "undecided", pair
    mine, base = (r.compilation for r in pair)
    if mine is None or base is None:
        return "undecided", "not compiled"
    a, b = words.in_bytes(mine.wire_bytes), words.in_bytes(base.wire_bytes)
    text = f"{a} per device beside {b}, compiled"
    return ("pass" if mine.wire_bytes < base.wire_bytes else "fail"), text


def _weights_share(run: _Run, argument: str) -> _Decision:
    name, _, parts = argument.partition(":")
    result = run.result(name)
    if result is None or result.compilation is None:
        return "undecided", f"{name} was not compiled"
    share = result.compilation.memory.parameter_bytes
    whole = run.config.num_params * run.config.item_bytes
    text = f"{words.in_bytes(share)} of {words.in_bytes(whole)}, compiled"
    return ("pass" if share <= 1.05 * whole / int(parts) else "fail"), text


def _same_workload(run: _Run, _: str) -> _Decision:
    compiled = [r.compilation for r in run.results if r.compilation]
    if len(compiled) < 2:
        return "undecided", f"{len(compiled)} strategies were compiled"
    seen = {(c.workload.batch, c.workload.seq_len, c.cluster) for c in compiled}
    first = compiled[0].workload
    text = (
        f"{words.tokens(first.batch, first.seq_len)}, {run.config.dtype}, model "
        f"{run.config.name} in all {len(compiled)} strategies"
    )
    return ("pass", text) if len(seen) == 1 else ("fail", f"{len(seen)} different workloads")


def _layer_weights(config: ModelConfig) -> int:
    return config.replace(num_layers=2).num_params - config.replace(num_layers=1).num_params


def _fits_cache(run: _Run, layer_bytes: float, how: str) -> _Decision:
    cache = run.cluster.gpu.l2_bytes
    text = f"one layer is {words.in_bytes(layer_bytes)} {how}, L2 of {run.cluster.gpu.name} is "
    text += f"{words.in_bytes(cache)}: {words.times(layer_bytes / cache)} the cache (derived)"
    return ("pass" if layer_bytes <= cache else "fail"), text


def _layer_fits_cache(run: _Run, _: str) -> _Decision:
    config = run.paper.config
    return _fits_cache(run, _layer_weights(config) * config.item_bytes, f"in {config.dtype}")


def _compressed_layer_fits_cache(run: _Run, _: str) -> _Decision:
    layer_bytes = _layer_weights(run.paper.config) * _INT8_2_4_BITS / 8
    return _fits_cache(
        run, layer_bytes, "in INT8 with all matrices 2:4 sparse, index bits included"
    )


def _layers_deal_out(run: _Run, _: str) -> _Decision:
    layers, devices = run.paper.config.num_layers, run.cluster.devices
    text = f"{layers} layers on {devices} devices (derived)"
    return ("pass" if layers % devices == 0 else "fail"), text


def _one_expert_a_device(run: _Run, name: str) -> _Decision:
    if run.result(name) is None:
        return "undecided", f"{name} was not run"
    experts, devices = run.paper.config.num_experts, run.cluster.devices
    text = f"{experts} experts per layer on {devices} devices (derived)"
    return ("pass" if experts == devices else "fail"), text


def _grows_linearly(run: _Run, argument: str) -> _Decision:
    """Compare tokens/s of the deepest and the shallowest model, one layer per device in both."""
    rows = [r for r in run.scale if r.strategy == run.paper.proposed and not r.unpacking]
    if not rows:
        return "undecided", "no other numbers of layers were modelled"
    said, ratios = [], []
    for phase in ("prefill", "decode"):
        mine = {r.layers: r.tokens_per_s for r in rows if r.phase == phase}
        few, many = min(mine), max(mine)
        slow, fast = mine[few], mine[many]
        if slow is None or fast is None:
            return "undecided", f"{few} or {many} layers do not fit"
        ratios.append(fast.value / slow.value * few / many)
        said.append(
            f"{phase} {words.times(fast.value / slow.value)}, not {words.times(many / few)}"
        )
    text = f"from {few} layers and devices to {many}: {'; '.join(said)} (modelled)"
    return ("pass" if min(ratios) >= _LINEAR else "fail"), text


def _needs(run: _Run, what: str) -> _Decision:
    return "undecided", f"needs {what}"


CHECKS: dict[str, Callable[[_Run, str], _Decision]] = {
    "faster": _faster,
    "fewer_bytes": _fewer_bytes,
    "weights_share": _weights_share,
    "same_workload": _same_workload,
    "layer_fits_cache": _layer_fits_cache,
    "compressed_layer_fits_cache": _compressed_layer_fits_cache,
    "layers_deal_out": _layers_deal_out,
    "one_expert_a_device": _one_expert_a_device,
    "grows_linearly": _grows_linearly,
    "needs": _needs,
}
