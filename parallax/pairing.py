"""Two strategies against each other on the devices at hand: paired runs as one call."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from parallax.codec import encode
from parallax.comparing import compare
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment
from parallax.lenses.measuring import confidence_interval
from parallax.lenses.pairing import LEAST_PAIRS, PairedRuns, measure_pairs
from parallax.lenses.text import read_text
from parallax.preparing import Plan, make_plan
from parallax.report import words
from parallax.workload import Workload

# Arguments of `compare` that decide what is timed.
TAKEN = (
    "model", "mesh", "batch", "seq_len", "microbatches", "small", "dtype", "compression", "cluster",
    "packed", "text",
)  # fmt: skip
VIRTUAL = (
    "These devices are virtual, threads of one CPU, and the model is the small one: the ratio is "
    "of this machine and says nothing about GPUs."
)


@dataclass(frozen=True)
class PairsReport:
    """What paired runs found (tag: measured).

    Attributes:
      names: of the two strategies; a ratio is the second's time over the first's.
      model, workloads: that ran.
      device: its kind.
      virtual: the devices are threads of a CPU.
      runs: the pairs.
    """

    names: tuple[str, str]
    model: str
    workloads: tuple[Workload, Workload]
    device: str
    virtual: bool
    runs: PairedRuns

    def table(self) -> RenderableType:
        """A few lines."""
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
            lines.append(f"  {name}: {words.in_seconds(step.value)}{half} a step")
        faster = self.names[0] if ratio.value > 1 else self.names[1]
        verdict = f": {faster} is faster" if runs.decided else ": not decided"
        lines += [
            f"  {self.names[1]} / {self.names[0]}: {ratio.value:.3f}, {ratio.low:.3f} to "
            f"{ratio.high:.3f} ({ratio.note}; measured){'' if self.virtual else verdict}.",
        ]
        found: list[RenderableType] = [Text(line) for line in lines]
        return Group(*found, *([Text(VIRTUAL, style="yellow")] if self.virtual else []))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every pair in it."""
        data = encode(self)
        runs = data.pop("runs")
        return {"pairs_version": 1, **data, "ratio": runs["ratio"], **runs}


def compare_pairs(
    paper: str | None = None,
    *,
    strategies: Sequence[Any] | None = None,
    pairs: int = 100,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda line: None,
    **request: Any,
) -> PairsReport:
    """Times two strategies in pairs; what drifts meets both alike.

    Args:
      paper: a name of PAPERS; its baseline and its own system are compared.
      strategies: two, as `compare` takes them.
      pairs: how many, from 2 on.
      seed: of the drawn orders.
      request: those of `compare` in TAKEN.

    Raises:
      ValueError: not two strategies, or what `compare` refuses.
    """
    known = {n: p.default for n, p in inspect.signature(compare).parameters.items()}
    if unknown := set(request) - set(TAKEN):
        raise ValueError(
            f"compare_pairs: argument {sorted(unknown)[0]!r} changes nothing that is timed, a "
            f"forward pass. Use some of {', '.join(TAKEN)}."
        )
    if pairs < LEAST_PAIRS:
        raise ValueError(f"compare_pairs: pairs must be at least {LEAST_PAIRS}, got {pairs}.")
    if strategies is None and paper is not None:
        from parallax.papers import paper as find_paper

        strategies = (find_paper(paper).strategies[0], find_paper(paper).proposed)
    if strategies is None or len(strategies) != 2:
        got = "none" if strategies is None else str(len(strategies))
        raise ValueError(f"compare_pairs: expected two strategies, got {got}.")
    asked = {"paper": paper, "strategies": list(strategies), "lenses": ["measure"]}
    return _run(make_plan({**known, **request, **asked}), pairs, seed, on_progress)


def _run(plan: Plan, pairs: int, seed: int, on_progress: Callable[[str], None]) -> PairsReport:
    cases, config, environment = plan.cases, plan.config, {}
    if plan.virtual:
        cases = plan.small_cases
        config = plan.small_config.replace(
            name=f"{plan.small_config.name} in float32", dtype="float32"
        )
        environment = cpu_environment(max(s.mesh.size for s, _ in cases), fast_code=True)
        environment["JAX_ENABLE_X64"] = "0"
    (one, work), (two, other) = cases
    text, _ = read_text(plan.text, max(work.tokens, other.tokens))
    runs, device = run_in_child(
        measure_pairs, config, (one, two), (work, other), text, pairs, seed,
        environment=environment, on_progress=on_progress,
    )  # fmt: skip
    return PairsReport((one.name, two.name), config.name, (work, other), device, plan.virtual, runs)
