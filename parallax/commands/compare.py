"""The `compare` command: strategies side by side through the lenses, a paper's or one's own."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from parallax.commands.lens_tasks import CompileTask, Refusal, VerifyTask, compile_all, verify_task
from parallax.commands.resolve import REFUSALS, ResolvedComparison, nothing_runs, resolve
from parallax.commands.sweep import one_line, run_sweep
from parallax.cost import Rates
from parallax.lenses.child import Progress, end_children, run_in_child
from parallax.lenses.environment import (
    compile_environment,
    cpu_environment,
    missing_compiler,
    versions,
)
from parallax.lenses.measuring import measure_prefill
from parallax.lenses.text import read_text
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.papers import PAPERS
from parallax.papers.findings import findings
from parallax.parallel.remat import Remat
from parallax.program import Program
from parallax.report import Report
from parallax.report.recorded import recorded_sections
from parallax.requests.compare import REPEATS, CompareRequest
from parallax.results.lens_results import Compilation, StrategyResult
from parallax.results.sweep_results import Sweep
from parallax.rules import Phase
from parallax.strategy import Strategy


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
    rates: Rates | str | Path | None = None,
    lenses: Sequence[str] | None = None,
    budget: str | None = None,
    packed: bool = False,
    small: bool = False,
    phase: Phase = "prefill",
    remat: Remat = "layer",
    text: str | None = None,
    repeats: int = REPEATS,
    sweep: str | None = None,
    on_progress: Progress = lambda line: None,
) -> Report:
    """Compare strategies: exact? fits? what moves? how fast at best?

    Args:
      paper: a name of PAPERS; sets model, strategies, batch, seq_len, dtype and cluster, and adds
        the paper's claims. Any other argument overrides it.
      model: a name of PAPERS (its model), or a ModelConfig.
      strategies: names of STRATEGIES, paths of strategy files (.json), or Strategy values.
      mesh: mesh axes of the named strategies, such as "stage=2,tensor=8"; None fills the cluster.
      batch, seq_len: sequences over all devices, and tokens of each.
      microbatches: number per device. None takes the paper's, lowered to what divides the
        device's sequences; the report prints what each strategy ran with.
      dtype: the dtype of parameters and activations.
      compression: formats that matrices are stored in, such as "int8,int8+2:4" (attention, MLP).
        The function is not the dense model's; its error against dense is measured.
      kernels: the implementation that compile and predict use where it applies: "mosaic", our
        kernels for Hopper, validated or not; "cudnn", the library's attention of whole sequences;
        None, validated kernels, else XLA's. On CPUs XLA computes the same.
      cluster: a cluster name.
      rates: constants of the cluster's GPU, or a file that `parallax calibrate` wrote; None takes
        those shipped.
      lenses: some of verify, compile, predict, measure.
      budget: bytes per device that its layers have to fit in: l2, smem, l2+smem, hbm, hbm+kv, or a
        number such as 50MB. The report then says which layers go where, and what is missing.
      packed: several documents per sequence, told apart by segment ids.
      small: compiles and predicts the small model that verify runs, instead of the full size.
      phase: what is compiled and predicted: "prefill", a forward pass to last-position logits;
        "decode", a new token of every sequence after prompts of seq_len tokens; or "train", a step
        of AdamW with float32 parameters.
      remat: what a training step recomputes: "none", "attention" or "layer".
      text: a UTF-8 file for verify and measure.
      repeats: timed steps of the measure lens.
      sweep: an axis (devices, seq_len or batch) and its values, "seq_len:4k..128k" (doubling) or
        "devices:4,16": compile and predict run at each value instead of once, and verify only if
        `lenses` names it. `devices` rebuilds cluster and strategies; the whole batch stays.
      on_progress: called with a line whenever something starts.

    Returns:
      A Report. A strategy that cannot run is in it with the reason, and makes its exit status 1.

    Raises:
      ValueError: an unknown name, an argument that would be ignored, or no strategy that can run;
        raised before any work starts.

    Cost: minutes at most; verify and compile run beside each other in child processes.
    """
    request = CompareRequest(
        paper=paper,
        model=model,
        strategies=strategies,
        mesh=mesh,
        batch=batch,
        seq_len=seq_len,
        microbatches=microbatches,
        dtype=dtype,
        compression=compression,
        kernels=kernels,
        cluster=cluster,
        rates=rates,
        lenses=lenses,
        budget=budget,
        packed=packed,
        small=small,
        phase=phase,
        remat=remat,
        text=text,
        repeats=repeats,
        sweep=sweep,
    )
    request.refuse_unused()
    return run_comparisons([resolve(request)], on_progress=on_progress)[0]


def compare_papers(
    papers: Sequence[str] | None = None,
    *,
    on_progress: Progress = lambda line: None,
    **options: Any,
) -> list[Report]:
    """Compare the strategies of several papers in one run.

    Args:
      papers: names of PAPERS; None takes all of them.
      on_progress: called with a line whenever something starts.
      options: arguments of `compare`, which hold for every paper.

    Returns:
      One Report per paper, as `compare` makes it.

    Raises:
      ValueError: as `compare`, for any of the papers, before any work starts.

    Cost: minutes; two child processes at a time: one compiles for all, the others verify a paper
    each.
    """
    known = {f.name for f in fields(CompareRequest)} - {"paper"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"compare_papers: unknown option {unknown[0]!r}.")
    request = CompareRequest(**options)
    request.refuse_unused()
    return run_papers(request, papers, on_progress=on_progress)


def run_papers(
    request: CompareRequest, papers: Sequence[str] | None = None, *, on_progress: Progress
) -> list[Report]:
    """Run one request for several papers, None being all, as `compare_papers` does."""
    names = PAPERS if papers is None else papers
    resolved = [resolve(request.replace(paper=name)) for name in names]
    return run_comparisons(resolved, on_progress=on_progress)


@dataclass
class _Run:
    """A comparison and what its lenses have found so far.

    Attributes:
      values: strategy name -> field of its result -> what a lens found.
      refused: strategy name -> lens -> why the strategy cannot run it.
      skipped: lens -> why it ran for no strategy.
    """

    comparison: ResolvedComparison
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    sweep: Sweep | None = None

    def __post_init__(self):
        self.values = {name: {} for name in self.comparison.names}
        self.refused = {name: {} for name in self.comparison.names}
        for name, why in self.comparison.refused.items():
            self.refused[name] |= why

    @property
    def compiles(self) -> bool:
        return bool({"compile", "predict"} & set(self.comparison.lenses))

    @property
    def is_empty(self) -> bool:
        """Whether no strategy could run any lens."""
        return not (any(self.values.values()) or self.skipped or self.sweep)

    def refuse(self, name: str, lenses: Sequence[str], why: str) -> None:
        """Record why a strategy could not run some of the lenses that were asked for."""
        asked = [x for x in lenses if x in self.comparison.lenses]
        self.refused[name] |= dict.fromkeys(asked, why)

    def skip(self, lenses: Sequence[str], why: str) -> None:
        """Record why some of the lenses that were asked for run for no strategy."""
        self.skipped |= {x: why for x in lenses if x in self.comparison.lenses}

    def report(self, seconds: float) -> Report:
        """Return the report, once all lenses have run."""
        comparison, skipped = self.comparison, self.skipped
        strategies = {strategy.name: strategy for strategy, _ in comparison.cases}
        results = tuple(
            _result(name, strategies.get(name), self.refused[name], skipped, self.values[name])
            for name in comparison.names
        )
        paper, config, workload = comparison.paper, comparison.config, comparison.workload
        cluster, budget = comparison.cluster.name, comparison.request.budget
        return Report(
            config=config,
            workload=workload,
            cluster=cluster,
            lenses=comparison.lenses,
            results=results,
            request=comparison.request.to_dict(),
            versions=versions(),
            seconds=seconds,
            paper=paper,
            sweep=self.sweep,
            findings=findings(paper, config, workload, cluster, results, budget),
            recorded=recorded_sections(paper.name) if paper else (),
        )


def _result(
    name: str, strategy: Strategy | None, refused: dict[str, str], skipped: dict[str, str],
    values: dict[str, Any],
) -> StrategyResult:  # fmt: skip
    if strategy is None:
        return StrategyResult({"name": name}, "cannot run", refused=refused)
    described = f"mesh {strategy.mesh}, {strategy.attention}, {strategy.layers}"
    left_out = {lens: why for lens, why in skipped.items() if lens not in refused}
    return StrategyResult(
        strategy.to_dict(), described, skipped=left_out, refused=refused, **values
    )


def run_comparisons(
    comparisons: Sequence[ResolvedComparison], *, on_progress: Progress
) -> list[Report]:
    """Run all lenses, two child processes at a time.

    All compilations share one child, and each comparison's verifications have one of their own.

    Args:
      comparisons: what `resolve` returned.
      on_progress: called with a line whenever something starts.

    Returns:
      One Report per comparison; `seconds` is that of the whole run.

    Raises:
      ValueError: no strategy could run any lens.
    """
    start = time.perf_counter()
    lock = threading.Lock()

    def report_line(line: str) -> None:
        with lock:
            on_progress(line)

    runs = [_Run(comparison) for comparison in comparisons]
    verifications = [
        partial(_verify, run, report_line) for run in runs if "verify" in run.comparison.lenses
    ]
    _run_beside([partial(_compile, runs, report_line), *verifications])
    for run in runs:
        _measure(run, report_line)  # runs alone: nothing else may use the machine
    if all(run.is_empty for run in runs):
        refused = {name: why for run in runs for name, why in run.refused.items()}
        raise ValueError(nothing_runs({n: next(iter(why.values())) for n, why in refused.items()}))
    seconds = time.perf_counter() - start
    return [run.report(seconds) for run in runs]


def _run_beside(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs two at a time.

    The first that fails, or Ctrl-C, ends the children of all.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            for done in as_completed([pool.submit(job) for job in jobs]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_children()
            raise


def _verify(run: _Run, on_progress: Progress) -> None:
    one = run.comparison
    text, name = read_text(one.request.text, one.small_cases[0][1].tokens)
    dtypes = tuple(dict.fromkeys(("float64", one.config.dtype)))
    task = VerifyTask(one.request.phase, one.small_config, one.small_cases, text, name, dtypes)
    rows = run_in_child(
        verify_task, task,
        environment=cpu_environment(max(s.mesh.size for s, _ in task.cases)),
        on_progress=lambda line: on_progress(f"verify: {line}"),
    )  # fmt: skip
    for (strategy, _), row in zip(task.cases, rows, strict=True):
        run.values[strategy.name]["verification"] = row


def _compile(runs: Sequence[_Run], on_progress: Progress) -> None:
    def progress(line: str) -> None:
        on_progress(f"compile: {line}")

    asked = [run for run in runs if run.compiles]
    if asked and (missing := missing_compiler()):
        for run in asked:
            run.skip(("compile", "predict"), missing)
        on_progress(missing)
        return
    tasks, places = [], []
    for run in asked:
        one, request = run.comparison, run.comparison.request
        if one.sweep is not None:
            run.sweep = run_sweep(
                one.config, one.sweep, request.phase, request.remat, one.rates, on_progress=progress
            )
            why = f"at each {run.sweep.axis} of the sweep instead"
            run.skip(("compile", "predict"), why)
            continue
        for strategy, workload in one.cases:
            tasks.append(
                CompileTask(
                    one.config, strategy, workload, one.cluster, request.phase, request.remat
                )
            )
            places.append((run, strategy))
    if not tasks:
        return
    compiled = run_in_child(
        compile_all, tasks, environment=compile_environment(), on_progress=progress
    )
    for (run, strategy), compilation in zip(places, compiled, strict=True):
        _keep(run, strategy, compilation)


def _keep(run: _Run, strategy: Strategy, compiled: Compilation | Refusal) -> None:
    """Keep a compiled program and what the cost model predicts for it."""
    one, values = run.comparison, run.values[strategy.name]
    if isinstance(compiled, Refusal):
        run.refuse(strategy.name, ("compile", "predict"), compiled.why)
        return
    if "compile" in one.lenses:
        values["compilation"] = compiled
    if "predict" not in one.lenses:
        return
    try:
        values["prediction"] = Program(one.config, strategy).predict(compiled, one.rates)
    except REFUSALS as error:
        run.refuse(strategy.name, ("predict",), one_line(error))


def _measure(run: _Run, on_progress: Progress) -> None:
    if "measure" not in run.comparison.lenses:
        return
    one, request = run.comparison, run.comparison.request
    text, _ = read_text(request.text, max(w.tokens for _, w in (*one.cases, *one.small_cases)))
    for (strategy, workload), (_, small) in zip(one.cases, one.small_cases, strict=True):
        if "measure" in run.refused[strategy.name]:
            continue
        config, runs = one.config, workload
        environment: dict[str, str] = {}
        if one.virtual:
            # The report says so: size and dtype are not those asked for.
            name = f"{one.small_config.name} in float32"
            config, runs = one.small_config.replace(name=name, dtype="float32"), small
            environment = cpu_environment(strategy.mesh.size, fast_code=True)
            environment["JAX_ENABLE_X64"] = "0"
        try:
            run.values[strategy.name]["measurement"] = run_in_child(
                measure_prefill, config, strategy, runs, text, request.repeats,
                environment=environment,
                on_progress=lambda line: on_progress(f"measure: {line}"),
            )  # fmt: skip
        except REFUSALS as error:
            run.refuse(strategy.name, ("measure",), one_line(error))
