"""Resolved comparisons as they run: their lenses in child processes, and what they found."""

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from parallax.commands.lens_tasks import CompileTask, Refusal, VerifyTask, compile_all, verify_task
from parallax.commands.resolve import REFUSALS, ResolvedComparison, nothing_runs
from parallax.commands.sweep import one_line, run_sweep
from parallax.distributed.agreement import together
from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.children import run_beside
from parallax.lenses.device_process import run_on_devices
from parallax.lenses.environment import (
    compile_environment,
    cpu_environment,
    missing_compiler,
    too_many_devices,
    versions,
)
from parallax.lenses.measuring import measure_prefill
from parallax.lenses.profiling import ProfileTask
from parallax.lenses.text import read_text
from parallax.papers.findings import findings
from parallax.program import Program
from parallax.report import Report
from parallax.report.parts import describe_parts
from parallax.report.recorded import recorded_sections
from parallax.results.lens_results import Compilation, StrategyResult
from parallax.results.sweep_results import Sweep
from parallax.search.fitting import fitting_knob, training_facts
from parallax.strategy import Strategy


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
        """Whether no strategy ran any lens."""
        return not (any(self.values.values()) or self.sweep)

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
        if comparison.sweep is None:
            _add_derived(comparison, self.values)
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


def _add_derived(comparison: ResolvedComparison, values: dict[str, dict[str, Any]]) -> None:
    """Add how each strategy trains, and for one that does not fit what would make it fit."""
    config, phase, remat = comparison.config, comparison.request.phase, comparison.request.remat
    for strategy, workload in comparison.cases:
        found = values[strategy.name]
        if phase == "train":
            found["training"] = training_facts(config, strategy, workload, remat)
        compiled: Compilation | None = found.get("compilation")
        if compiled is not None and not compiled.memory.fits:
            found["knob"] = fitting_knob(
                config, strategy, workload, comparison.cluster, phase, remat
            )


def _result(
    name: str, strategy: Strategy | None, refused: dict[str, str], skipped: dict[str, str],
    values: dict[str, Any],
) -> StrategyResult:  # fmt: skip
    if strategy is None:
        return StrategyResult({"name": name}, "cannot run", refused=refused)
    data = strategy.to_dict()
    left_out = {lens: why for lens, why in skipped.items() if lens not in refused}
    return StrategyResult(
        data, describe_parts(data, str(strategy.mesh)), skipped=left_out, refused=refused, **values
    )


def run_comparisons(
    comparisons: Sequence[ResolvedComparison], *, on_progress: Progress
) -> list[Report]:
    """Run all lenses, two child processes at a time.

    All compilations share one child, and each comparison's verifications have one of their own.
    Several processes measure, all together, and do nothing else (`checked_lenses`).

    Args:
      comparisons: what `resolve` returned.
      on_progress: called with a line whenever something starts.

    Returns:
      One Report per comparison; `seconds` is that of the whole run.

    Raises:
      ValueError: no strategy ran any lens.
    """
    start = time.perf_counter()
    lock = threading.Lock()

    def report_line(line: str) -> None:
        with lock:
            on_progress(line)

    runs = [_Run(comparison) for comparison in comparisons]
    for name, note in (pair for one in comparisons for pair in one.moved.items()):
        report_line(f"{name}: {note}")
    for name, note in ((one.config.name, note) for one in comparisons for note in one.notes):
        report_line(f"{name}: {note}")
    verifications = [
        partial(_verify, run, report_line) for run in runs if "verify" in run.comparison.lenses
    ]
    run_beside([partial(_compile, runs, report_line), *verifications])
    for run in runs:
        _measure(run, report_line)  # runs alone: nothing else may use the machine
    if all(run.is_empty for run in runs):
        if skipped := dict.fromkeys(why for run in runs for why in run.skipped.values()):
            raise ValueError(f"nothing was checked. {' '.join(skipped)}")
        refused = {name: why for run in runs for name, why in run.refused.items()}
        raise ValueError(nothing_runs({n: next(iter(why.values())) for n, why in refused.items()}))
    seconds = time.perf_counter() - start
    return [run.report(seconds) for run in runs]


def _verify(run: _Run, on_progress: Progress) -> None:
    one = run.comparison
    devices = max(s.mesh.size for s, _ in one.small_cases)
    if why := too_many_devices(devices):
        run.skip(("verify",), f"verify lens not run: {why}")
        on_progress(run.skipped["verify"])
        return
    text, name = read_text(one.request.text, one.small_cases[0][1].tokens)
    dtypes = tuple(dict.fromkeys(("float64", one.config.dtype)))
    task = VerifyTask(one.request.phase, one.small_config, one.small_cases, text, name, dtypes)
    rows = run_in_child(
        verify_task, task,
        environment=cpu_environment(devices),
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
        moved = (note,) if (note := one.moved.get(strategy.name)) else ()
        said = (*one.request.training_options().notes(strategy), *moved, *one.notes)
        values["compilation"] = replace(compiled, notes=(*compiled.notes, *said))
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
    most = max(w.tokens for _, w in (*one.cases, *one.small_cases))
    text, _ = together("the text", lambda: read_text(request.text, most))
    for (strategy, workload), (_, small) in zip(one.cases, one.small_cases, strict=True):
        if "measure" in run.refused[strategy.name]:
            continue
        config, runs = one.config, workload
        profile = None
        if one.profile is not None:
            # A file of a strategy may give it any name.
            folder = one.profile / (re.sub(r"[^\w.-]", "_", strategy.name).strip(".") or "_")
            profile = ProfileTask(str(folder), one.cluster, one.rates)
        environment: dict[str, str] = {}
        if one.virtual:
            # The report says so: size and dtype are not those asked for.
            name = f"{one.small_config.name} in float32"
            config, runs = one.small_config.replace(name=name, dtype="float32"), small
            environment = cpu_environment(strategy.mesh.size, fast_code=True)
            environment["JAX_ENABLE_X64"] = "0"
        try:
            run.values[strategy.name]["measurement"] = run_on_devices(
                measure_prefill, config, strategy, runs, text, request.repeats, profile,
                environment=environment,
                on_progress=lambda line: on_progress(f"measure: {line}"),
            )  # fmt: skip
        except REFUSALS as error:
            run.refuse(strategy.name, ("measure",), one_line(error))
