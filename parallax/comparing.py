"""compare: strategies side by side through the lenses, from a paper's experiment or one's own."""

import inspect
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.environment import (
    compile_environment,
    cpu_environment,
    installed_versions,
    missing_compiler,
)
from parallax.lenses.measuring import measure_prefill
from parallax.lenses.text import read_text
from parallax.lenses.verify_decoding import verify_decoding
from parallax.lenses.verifying import verify_transformer
from parallax.meshes.cluster import Cluster
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.papers import PAPERS
from parallax.papers.findings import findings
from parallax.parallel.split import Remat
from parallax.preparing import Plan, make_plan
from parallax.program import Program, compile_program
from parallax.report import Report
from parallax.report.recorded import recorded_sections
from parallax.results import StrategyResult
from parallax.rules import Phase
from parallax.steps import make_step
from parallax.strategy import Strategy
from parallax.sweep_results import Sweep
from parallax.sweeping import run_sweep
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
    compression: str | tuple[str, str] | None = None,
    kernels: str | None = None,
    cluster: str | None = None,
    lenses: Sequence[str] | None = None,
    budget: str | None = None,
    packed: bool = False,
    small: bool = False,
    phase: Phase = "prefill",
    remat: Remat = "microbatch",
    text: str | None = None,
    repeats: int = 10,
    sweep: str | None = None,
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
      compression: formats that matrices are stored in, such as "int8,int8+2:4" (attention, MLP):
        another function than the dense model's, and its distance is measured.
      kernels: what compile and predict use wherever it can: "mosaic", our kernels for Hopper,
        validated or not; "cudnn", the library's attention of whole sequences; None, what is
        validated, else XLA's. On CPUs XLA computes the same.
      cluster: a cluster name.
      lenses: some of verify, compile, predict, measure.
      budget: bytes of a device that its layers are to fit in: l2, smem, l2+smem, hbm, hbm+kv, or a
        number such as 50MB. The report then says which layers go where, and what is missing.
      packed: with segment ids, several documents a sequence.
      small: compile and predict the small model that verify runs, instead of the full size.
      phase: what is compiled and predicted: "prefill", a forward pass to last-position logits;
        "decode", a new token of every sequence after prompts of seq_len tokens; or "train", a step
        of AdamW with float32 parameters.
      remat: what a training step recomputes: "none", "microbatch" or "layer".
      text: a UTF-8 file for verify and measure.
      repeats: timed steps of measure.
      sweep: an axis (devices, seq_len or batch) and its values, "seq_len:4k..128k" (doubling) or
        "devices:4,16": compile and predict run at each value instead of once, and verify only if
        `lenses` names it. `devices` rebuilds cluster and strategies, the whole batch staying.
      on_progress: called with a line whenever something starts.

    Returns:
      A Report.

    Raises:
      ValueError: anything unknown or that does not divide, before any work starts.

    Cost: minutes at most; verify and compile run beside each other in child processes.
    """
    return compare_plans([make_plan(locals())], on_progress=on_progress)[0]


def compare_papers(
    papers: Sequence[str] | None = None,
    *,
    on_progress: Progress = lambda line: None,
    **options: Any,
) -> list[Report]:
    """Compares the strategies of several papers in one run.

    Args:
      papers: names of PAPERS; None is all of them.
      on_progress: called with a line whenever something starts.
      options: as `compare` takes them; they hold for every paper.

    Returns:
      One Report a paper, as `compare` makes it.

    Raises:
      ValueError: as `compare`, for any of them, before any work starts.

    Cost: minutes; one child process verifies them all while another compiles.
    """
    known = inspect.signature(compare).parameters
    if unknown := set(options) - set(known):
        raise ValueError(f"compare_papers: unknown option {sorted(unknown)[0]!r}.")
    defaults = {name: p.default for name, p in known.items()}
    names = PAPERS if papers is None else papers
    plans = [make_plan(defaults | options | {"paper": name}) for name in names]
    return compare_plans(plans, on_progress=on_progress)


@dataclass
class _Found:
    """What the lenses said of one plan, by strategy, while they run."""

    values: dict[str, dict[str, Any]]
    skipped: dict[str, str] = field(default_factory=dict)
    sweep: Sweep | None = None


def compare_plans(plans: Sequence[Plan], *, on_progress: Progress) -> list[Report]:
    """Runs the lenses of every plan: all verifications in one child, all compiles in another.

    Args:
      plans: checked by `make_plan`.
      on_progress: called with a line whenever something starts.

    Returns:
      One Report a plan; `seconds` is of the whole run.
    """
    start = time.perf_counter()
    lock = threading.Lock()

    def report_line(line: str) -> None:
        with lock:
            on_progress(line)

    found = [_Found({strategy.name: {} for strategy, _ in plan.cases}) for plan in plans]
    jobs: list[Callable[[], None]] = []
    if any("verify" in plan.lenses for plan in plans):
        jobs.append(lambda: _verify(plans, found, report_line))
    if any({"compile", "predict"} & set(plan.lenses) for plan in plans):
        if missing := missing_compiler():
            for plan, one in zip(plans, found, strict=True):
                one.skipped = {x: missing for x in ("compile", "predict") if x in plan.lenses}
            report_line(missing)
        else:
            jobs.append(lambda: _compile(plans, found, report_line))
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
    for plan, one in zip(plans, found, strict=True):
        if "measure" in plan.lenses:  # alone: nothing else may use the machine
            for name, values in _measure(plan, report_line).items():
                one.values[name] |= values
    seconds = time.perf_counter() - start
    return [_report(plan, one, seconds) for plan, one in zip(plans, found, strict=True)]


def _report(plan: Plan, found: _Found, seconds: float) -> Report:
    skipped = found.skipped
    if found.sweep is not None:
        why = f"at each {found.sweep.axis} of the sweep instead"
        skipped = {lens: why for lens in plan.lenses if lens in ("compile", "predict")}
    results = tuple(
        StrategyResult(
            strategy=strategy.to_dict(),
            description=f"mesh {strategy.mesh}, {strategy.attention}, {strategy.layers}",
            skipped=dict(skipped),
            **found.values[strategy.name],
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
        seconds=seconds,
        paper=plan.paper,
        sweep=found.sweep,
        findings=findings(
            plan.paper, plan.config, plan.workload, plan.cluster.name, results,
            plan.request.get("budget"),
        ),
        recorded=recorded_sections(plan.paper.name) if plan.paper else (),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("jax", "jaxlib", "flax", "numpy", "jax-cuda12-plugin", "jax-cuda13-plugin",
             "nvidia-cuda-nvcc-cu12", "parallax-sharding")  # fmt: skip
    return {"python": platform.python_version()} | installed_versions(*names)


def _verify(plans: Sequence[Plan], found: Sequence[_Found], on_progress: Progress) -> None:
    asked = [(p, f) for p, f in zip(plans, found, strict=True) if "verify" in p.lenses]
    tasks = []
    for plan, _ in asked:
        text, name = read_text(plan.text, plan.small_cases[0][1].tokens)
        dtypes = tuple(dict.fromkeys(("float64", plan.config.dtype)))
        step = make_step(plan.small_config, *plan.small_cases[0], plan.phase, plan.remat)
        verify = verify_transformer if step.decoder is None else verify_decoding
        tasks.append((verify, plan.small_config, plan.small_cases, text, name, dtypes))
    devices = max(s.mesh.size for plan, _ in asked for s, _ in plan.small_cases)
    verified = run_in_child(
        verify_all, tasks,
        environment=cpu_environment(devices),
        on_progress=lambda line: on_progress(f"verify: {line}"),
    )  # fmt: skip
    for (plan, one), rows in zip(asked, verified, strict=True):
        for (strategy, _), row in zip(plan.small_cases, rows, strict=True):
            one.values[strategy.name]["verification"] = row


def verify_all(tasks: Sequence[tuple], *, on_progress: Progress) -> list[list[Any]]:
    """Verifies every task in this process, one after the other: the verify lens's child."""
    found = []
    for verify, config, *rest in tasks:
        found.append(
            verify(
                config, *rest, on_progress=lambda line, c=config: on_progress(f"{c.name}: {line}")
            )
        )
    return found


def compile_all(
    tasks: Sequence[tuple[ModelConfig, Strategy, Workload, Cluster, Phase, Remat]],
    *,
    on_progress: Progress,
) -> list[Any]:
    """Compiles every task in this process, one after the other: the compile lens's child."""
    return [
        compile_program(
            config,
            strategy,
            workload,
            where,
            phase,
            remat,
            on_progress=lambda line, c=config: on_progress(f"{c.name}: {line}"),
        )
        for config, strategy, workload, where, phase, remat in tasks
    ]


def _compile(plans: Sequence[Plan], found: Sequence[_Found], on_progress: Progress) -> None:
    def progress(line: str) -> None:
        on_progress(f"compile: {line}")

    tasks, places = [], []
    for plan, one in zip(plans, found, strict=True):
        if plan.sweep is not None:
            one.sweep = run_sweep(
                plan.config,
                plan.sweep,
                plan.tasks,
                plan.constant,
                plan.phase,
                plan.remat,
                on_progress=progress,
            )
        elif {"compile", "predict"} & set(plan.lenses):
            rest = plan.cluster, plan.phase, plan.remat
            tasks += [(plan.config, s, w, *rest) for s, w in plan.cases]
            places += [(plan, s, one.values[s.name]) for s, _ in plan.cases]
    if not tasks:
        return
    compiled = run_in_child(
        compile_all, tasks, environment=compile_environment(), on_progress=progress
    )
    for (plan, strategy, values), compilation in zip(places, compiled, strict=True):
        if "compile" in plan.lenses:
            values["compilation"] = compilation
        if "predict" in plan.lenses:
            values["prediction"] = Program(plan.config, strategy).predict(compilation)


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
            measure_prefill, config, strategy, run, text, plan.repeats,
            environment=environment,
            on_progress=lambda line: on_progress(f"measure: {line}"),
        )  # fmt: skip
        out[strategy.name] = {"measurement": measured}
    return out
