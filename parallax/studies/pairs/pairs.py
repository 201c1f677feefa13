"""Comparison of two strategies on the local devices: paired runs as one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from parallax.codec import encode
from parallax.commands.resolve import resolve
from parallax.distributed.agreement import together
from parallax.lenses.device_process import run_on_devices
from parallax.lenses.environment import cpu_environment
from parallax.lenses.intervals import confidence_interval
from parallax.lenses.text import read_text
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.papers import paper as find_paper
from parallax.report import words
from parallax.report.sentences import slowest_process
from parallax.requests.pairs import PairsRequest
from parallax.strategy import Strategy
from parallax.studies.pairs.paired_runs import LEAST_PAIRS, PairedRuns, measure_pairs
from parallax.workload import Workload

VIRTUAL = (
    "These devices are virtual, threads of one CPU, and the model is the small one: the ratio "
    "holds for this machine and says nothing about GPUs."
)


@dataclass(frozen=True)
class PairsReport:
    """The result of paired runs of two strategies (tag: measured).

    Attributes:
      names: names of the two strategies; a ratio is the second's time over the first's.
      model, workloads: what ran.
      device: device kind.
      virtual: whether the devices are threads of a CPU.
      runs: the pairs.
      notes: what else a reader must know, one line each.
    """

    names: tuple[str, str]
    model: str
    workloads: tuple[Workload, Workload]
    device: str
    virtual: bool
    runs: PairedRuns
    notes: tuple[str, ...] = ()

    def table(self) -> RenderableType:
        """Render the result in a few lines."""
        runs, ratio = self.runs, self.runs.ratio
        assert ratio.low is not None
        assert ratio.high is not None
        lines = [
            f"{self.model}, batch {self.workloads[0].batch} x {self.workloads[0].seq_len}, "
            f"on {self.device}",
        ]
        for name, seconds in zip(self.names, (runs.first_s, runs.second_s), strict=True):
            step = confidence_interval(list(seconds))
            low, high = step.low, step.high
            half = "" if low is None or high is None else f" ± {words.in_seconds((high - low) / 2)}"
            lines.append(f"  {name}: {words.in_seconds(step.value)}{half} per step")
        faster = self.names[0] if ratio.value > 1 else self.names[1]
        verdict = f": {faster} is faster" if runs.decided else ": not decided"
        lines += [
            f"  {self.names[1]} / {self.names[0]}: {ratio.value:.3f}, {ratio.low:.3f} to "
            f"{ratio.high:.3f} ({ratio.note}; measured){'' if self.virtual else verdict}.",
        ]
        of_both = runs.first_processes, runs.second_processes
        for name, own in zip(self.names, of_both, strict=True):
            if own:
                lines.append(f"  {name}, {slowest_process(own)}.")
        lines += [f"  {words.one_line(note)}" for note in self.notes]
        rendered: list[RenderableType] = [Text(line) for line in lines]
        return Group(*rendered, *([Text(VIRTUAL, style="yellow")] if self.virtual else []))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, including every pair."""
        data = encode(self)
        runs = data.pop("runs")
        return {"pairs_version": 1, **data, "ratio": runs["ratio"], **runs}


def compare_pairs(
    paper: str | None = None,
    *,
    model: str | ModelConfig | None = None,
    strategies: Sequence[str | Strategy] | None = None,
    mesh: str | MeshSpec | None = None,
    batch: int | None = None,
    seq_len: int | None = None,
    microbatches: int | None = None,
    packed: bool = False,
    small: bool = False,
    dtype: str | None = None,
    compression: str | tuple[str, str] | None = None,
    cluster: str | None = None,
    text: str | None = None,
    pairs: int = 100,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda line: None,
) -> PairsReport:
    """Time two strategies in pairs, so that slow drift affects both alike.

    Args:
      paper: a name of PAPERS; its baseline and its own system are compared.
      model, mesh, batch, seq_len, microbatches, packed, small: as in `compare`.
      dtype, compression, cluster, text: likewise.
      strategies: two strategies, as in `compare`.
      pairs: number of pairs, at least 2.
      seed: seed of the random orders.
      on_progress: called with a line whenever something starts.

    Raises:
      ValueError: not two strategies, input that `compare` refuses, or a strategy that cannot run.
    """
    request = PairsRequest(
        paper=paper,
        model=model,
        strategies=strategies,
        mesh=mesh,
        batch=batch,
        seq_len=seq_len,
        microbatches=microbatches,
        packed=packed,
        small=small,
        dtype=dtype,
        compression=compression,
        cluster=cluster,
        text=text,
        pairs=pairs,
        seed=seed,
    )
    request.refuse_unused()
    return run_pairs(request, on_progress=on_progress)


def run_pairs(request: PairsRequest, *, on_progress: Callable[[str], None]) -> PairsReport:
    """Time the two strategies of a request, as `compare_pairs` does."""
    if request.pairs < LEAST_PAIRS:
        raise ValueError(
            f"compare_pairs: pairs must be at least {LEAST_PAIRS}, got {request.pairs}."
        )
    comparison = resolve(request.comparison(_two_strategies(request)))
    for why in comparison.refused.values():
        raise ValueError(why["measure"])
    (one, work), (two, other) = comparison.small_cases if comparison.virtual else comparison.cases
    config, environment = comparison.config, {}
    if comparison.virtual:
        name = f"{comparison.small_config.name} in float32"
        config = comparison.small_config.replace(name=name, dtype="float32")
        environment = cpu_environment(max(one.mesh.size, two.mesh.size), fast_code=True)
        environment["JAX_ENABLE_X64"] = "0"
    most = max(work.tokens, other.tokens)
    text, _ = together("the text", lambda: read_text(request.text, most))
    runs, device, notes = run_on_devices(
        measure_pairs, config, (one, two), (work, other), text, request.pairs, request.seed,
        environment=environment, on_progress=on_progress,
    )  # fmt: skip
    names = one.name, two.name
    return PairsReport(names, config.name, (work, other), device, comparison.virtual, runs, notes)


def _two_strategies(request: PairsRequest) -> Sequence[str | Strategy]:
    """Return the requested strategies, or the paper's baseline and its own system."""
    strategies = request.strategies
    if strategies is None and request.paper is not None:
        paper = find_paper(request.paper)
        return paper.strategies[0], paper.proposed
    if strategies is None or len(strategies) != 2:
        got = "none" if strategies is None else str(len(strategies))
        raise ValueError(f"compare_pairs: expected two strategies, got {got}.")
    return strategies
