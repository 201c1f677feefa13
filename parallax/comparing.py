"""compare: strategies side by side through the lenses, from a paper's experiment or one's own."""

import importlib.metadata
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.environment import compile_environment, cpu_environment, missing_compiler
from parallax.lenses.measuring import measure_transformer
from parallax.lenses.text import read_text
from parallax.lenses.verifying import verify_transformer
from parallax.meshes.cluster import Cluster
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.parallel.split import Remat
from parallax.plan import Plan, make_plan
from parallax.program import Program, compile_program
from parallax.report import Report
from parallax.results import StrategyResult
from parallax.rules import Phase
from parallax.strategy import Strategy
from parallax.workload import Workload


def compare(
    paper: str | None = None,
    *,
    model: str | ModelConfig | None = None,
    strategies: Sequence[str | Strategy] | None = None,
    mesh: str | MeshSpec | None = None,
    batch: int | None = None,
    seq_len: int | None = None,
    microbatches: int | None = None,
    dtype: str | None = None,
    cluster: str | None = None,
    lenses: Sequence[str] | None = None,
    packed: bool = False,
    small: bool = False,
    phase: Phase = "prefill",
    remat: Remat = "microbatch",
    text: str | None = None,
    repeats: int = 10,
    on_progress: Progress = lambda line: None,
) -> Report:
    """Compares strategies: exact? fits? what moves? how fast at best?

    Args:
      paper: a name of PAPERS; sets model, strategies, batch, seq_len, dtype and cluster, and adds
        the paper's claims. Any other argument overrides it.
      model: a name of PAPERS (its model), or a ModelConfig.
      strategies: names of STRATEGIES, paths of strategy files (.json), or Strategy values.
      mesh: mesh axes for the named strategies, such as "stage=2,tensor=8"; None fills the cluster.
      batch, seq_len: over all devices, sequences and tokens.
      microbatches: on each device. None takes the paper's, lowered to what divides the device's
        sequences; the report prints what each strategy ran with.
      dtype: of parameters and activations.
      cluster: a cluster name.
      lenses: some of verify, compile, predict, measure.
      packed: with segment ids, several documents a sequence.
      small: compile and predict the small model that verify runs, instead of the full size.
      phase: what is compiled and predicted: "prefill", a forward pass to last-position logits, or
        "train", a step of AdamW with float32 parameters.
      remat: what a training step recomputes: "none", "microbatch" or "layer".
      text: a UTF-8 file for verify and measure.
      repeats: timed steps of measure.
      on_progress: called with a line whenever something starts.

    Returns:
      A Report.

    Raises:
      ValueError: anything unknown or that does not divide, before any work starts.

    Cost: minutes at most; verify and compile run beside each other in child processes.
    """
    plan = make_plan(locals())
    start = time.perf_counter()
    lock = threading.Lock()

    def report_line(line: str) -> None:
        with lock:
            on_progress(line)

    jobs: list[Callable[[], dict[str, dict[str, Any]]]] = []
    skipped: dict[str, str] = {}
    if "verify" in plan.lenses:
        jobs.append(lambda: _verify(plan, report_line))
    if "compile" in plan.lenses or "predict" in plan.lenses:
        if missing := missing_compiler():
            skipped = {lens: missing for lens in ("compile", "predict") if lens in plan.lenses}
            report_line(missing)
        else:
            jobs.append(lambda: _compile(plan, report_line))
    found: dict[str, dict[str, Any]] = {strategy.name: {} for strategy, _ in plan.cases}
    with ThreadPoolExecutor(max_workers=2) as pool:
        for part in pool.map(lambda job: job(), jobs):
            for name, values in part.items():
                found[name] |= values
    if "measure" in plan.lenses:  # alone: nothing else may use the machine
        for name, values in _measure(plan, report_line).items():
            found[name] |= values
    results = tuple(
        StrategyResult(
            strategy=strategy.to_dict(),
            description=f"mesh {strategy.mesh}, {strategy.attention}, {strategy.layers}",
            skipped=dict(skipped),
            **found[strategy.name],
        )
        for strategy, _ in plan.cases
    )
    return Report(
        config=plan.config,
        workload=plan.workload,
        cluster=plan.cluster.name,
        lenses=plan.lenses,
        results=results,
        request=plan.request,
        versions=versions(),
        seconds=time.perf_counter() - start,
        paper=plan.paper,
    )


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("jax", "jaxlib", "flax", "numpy", "jax-cuda12-plugin", "jax-cuda13-plugin",
             "nvidia-cuda-nvcc-cu12", "parallax-sharding")  # fmt: skip
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _verify(plan: Plan, on_progress: Progress) -> dict[str, dict[str, Any]]:
    workload = plan.small_cases[0][1]
    text, name = read_text(plan.text, workload.tokens)
    dtypes = tuple(dict.fromkeys(("float64", plan.config.dtype)))
    devices = max(s.mesh.size for s, _ in plan.small_cases)
    found = run_in_child(
        verify_transformer, plan.small_config, plan.small_cases, text, name, dtypes,
        environment=cpu_environment(devices),
        on_progress=lambda line: on_progress(f"verify: {line}"),
    )  # fmt: skip
    names = [s.name for s, _ in plan.small_cases]
    return {n: {"verification": v} for n, v in zip(names, found, strict=True)}


def compile_all(
    config: ModelConfig,
    cases: Sequence[tuple[Strategy, Workload]],
    where: Cluster,
    phase: Phase = "prefill",
    remat: Remat = "microbatch",
    *,
    on_progress: Progress,
) -> list[Any]:
    """Compiles every case in this process, one after the other: the compile lens's child."""
    return [
        compile_program(config, s, w, where, phase, remat, on_progress=on_progress)
        for s, w in cases
    ]


def _compile(plan: Plan, on_progress: Progress) -> dict[str, dict[str, Any]]:
    found = run_in_child(
        compile_all, plan.config, plan.cases, plan.cluster, plan.phase, plan.remat,
        environment=compile_environment(),
        on_progress=lambda line: on_progress(f"compile: {line}"),
    )  # fmt: skip
    out = {}
    for (strategy, _), compilation in zip(plan.cases, found, strict=True):
        out[strategy.name] = {}
        if "compile" in plan.lenses:
            out[strategy.name]["compilation"] = compilation
        if "predict" in plan.lenses:
            prediction = Program(plan.config, strategy).predict(compilation)
            out[strategy.name]["prediction"] = prediction
    return out


def _measure(plan: Plan, on_progress: Progress) -> dict[str, dict[str, Any]]:
    text, _ = read_text(plan.text, max(w.tokens for _, w in (*plan.cases, *plan.small_cases)))
    out = {}
    for (strategy, workload), (_, small) in zip(plan.cases, plan.small_cases, strict=True):
        config, run = plan.config, workload
        environment: dict[str, str] = {}
        if plan.virtual:
            # Said in the report: another size and dtype than what was asked for.
            name = f"{plan.small_config.name} in float32"
            config, run = plan.small_config.replace(name=name, dtype="float32"), small
            environment = cpu_environment(strategy.mesh.size, fast_code=True)
            environment["JAX_ENABLE_X64"] = "0"
        measured = run_in_child(
            measure_transformer, config, strategy, run, text, plan.repeats,
            environment=environment,
            on_progress=lambda line: on_progress(f"measure: {line}"),
        )  # fmt: skip
        out[strategy.name] = {"measurement": measured}
    return out
