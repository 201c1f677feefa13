"""compare: strategies side by side through the lenses, from a paper's experiment or one's own."""

import importlib.metadata
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.compiling import check_devices
from parallax.lenses.environment import compile_environment, cpu_environment, missing_compiler
from parallax.lenses.measuring import devices_at_hand, measure_transformer
from parallax.lenses.text import read_text
from parallax.lenses.verifying import verify_transformer
from parallax.meshes.cluster import Cluster
from parallax.meshes.cluster import cluster as find_cluster
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.papers import paper as find_paper
from parallax.papers.paper import Paper
from parallax.program import Program, compile_program
from parallax.report import Report
from parallax.results import StrategyResult
from parallax.spmd import ShardedTransformer
from parallax.strategies import STRATEGIES, build
from parallax.strategy import Strategy
from parallax.workload import Workload

LENSES = ("verify", "compile", "predict", "measure")
DEFAULT_LENSES = ("verify", "compile", "predict")
DEFAULT_BATCH, DEFAULT_SEQ_LEN = 16, 1024


@dataclass(frozen=True)
class _Plan:
    """Everything a comparison needs, checked, before anything starts."""

    config: ModelConfig
    workload: Workload
    cases: tuple[tuple[Strategy, Workload], ...]
    small_config: ModelConfig
    small_cases: tuple[tuple[Strategy, Workload], ...]
    cluster: Cluster
    lenses: tuple[str, ...]
    text: str | None
    repeats: int
    paper: Paper | None
    request: dict[str, Any]
    virtual: bool


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
      text: a UTF-8 file for verify and measure.
      repeats: timed steps of measure.
      on_progress: called with a line whenever something starts.

    Returns:
      A Report.

    Raises:
      ValueError: anything unknown or that does not divide, before any work starts.

    Cost: minutes at most; verify and compile run beside each other in child processes.
    """
    plan = _plan(locals())
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


def _plan(request: dict[str, Any]) -> _Plan:
    request = {k: v for k, v in request.items() if k != "on_progress"}
    chosen = None if request["paper"] is None else find_paper(request["paper"])
    config, base, small_base = _model_and_workload(request, chosen)
    where = find_cluster(request["cluster"] or (chosen.cluster if chosen else "h100_2x8"))
    lenses = _lenses(request["lenses"])
    mesh = request["mesh"]
    mesh = MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh
    asked = request["strategies"] or (chosen.strategies if chosen else tuple(STRATEGIES))
    made = [_strategy(s, mesh, where) for s in asked]
    repeated = {s.name for s in made if sum(t.name == s.name for t in made) > 1}
    if repeated:
        raise ValueError(
            f"strategies: {', '.join(sorted(repeated))} given more than once. Give each a name of "
            "its own in its strategy file."
        )
    explicit = request["microbatches"] is not None
    cases = tuple((s, _fit_microbatches(s, base, explicit)) for s in made)
    small_config = config.small(max_seq_len=max(config.small().max_seq_len, small_base.seq_len))
    small_cases = tuple((s, _fit_microbatches(s, small_base, False)) for s in made)
    if request["small"]:
        config, base, cases = small_config, small_base, small_cases
    for strategy, workload in cases:
        ShardedTransformer(config, strategy, workload)
        if {"compile", "predict"} & set(lenses):
            check_devices(where, strategy.mesh)
    if {"verify", "measure"} & set(lenses):
        for strategy, workload in small_cases:
            ShardedTransformer(small_config, strategy, workload)
        read_text(request["text"], 1)
    if request["repeats"] < 1:
        raise ValueError(f"repeats must be at least 1, got {request['repeats']}.")
    virtual = "measure" in lenses and _only_cpu(cases)
    resolved = {
        "paper": request["paper"],
        "model": request["model"] if isinstance(request["model"], str | None) else config.name,
        "strategies": [s if isinstance(s, str) else s.name for s in asked],
        "mesh": None if mesh is None else str(mesh),
        "batch": request["batch"],
        "seq_len": request["seq_len"],
        "microbatches": request["microbatches"],
        "dtype": request["dtype"],
        "cluster": where.name,
        "lenses": list(lenses),
        "packed": request["packed"],
        "small": request["small"],
        "text": request["text"],
        "repeats": request["repeats"],
    }
    return _Plan(config, base, cases, small_config, small_cases, where, lenses, request["text"],
                 request["repeats"], chosen, resolved, virtual)  # fmt: skip


def _model_and_workload(request, chosen: Paper | None) -> tuple[ModelConfig, Workload, Workload]:
    model, source = request["model"], chosen
    if isinstance(model, ModelConfig):
        config = model
    else:
        if model is not None:
            source = find_paper(model)
        if source is None:
            raise ValueError("compare: give paper=, or model=. `parallax list papers` shows them.")
        config = source.config
    if request["dtype"] is not None:
        config = config.replace(dtype=request["dtype"])
    base = source.workload if source else Workload(DEFAULT_BATCH, DEFAULT_SEQ_LEN)
    small = source.small_workload if source else Workload(16, 80, 4)
    changes = {k: request[k] for k in ("batch", "seq_len", "microbatches") if request[k] is not None}
    for name, value in changes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    base = replace(base, **changes, packed=request["packed"])
    return config, base, replace(small, packed=request["packed"])


def _lenses(asked: Sequence[str] | None) -> tuple[str, ...]:
    lenses = tuple(asked or DEFAULT_LENSES)
    unknown = [x for x in lenses if x not in LENSES]
    if unknown:
        raise ValueError(f"unknown lens {unknown[0]!r}. Use some of: {', '.join(LENSES)}.")
    return tuple(x for x in LENSES if x in lenses)


def _strategy(asked: str | Strategy, mesh: MeshSpec | None, where: Cluster) -> Strategy:
    if isinstance(asked, Strategy):
        return asked
    if asked.endswith(".json"):
        return Strategy.load(Path(asked))
    return build(asked, mesh, devices=where.devices, node_size=where.gpus_per_node)


def _fit_microbatches(strategy: Strategy, base: Workload, explicit: bool) -> Workload:
    """The workload with the strategy's microbatches, else the most up to `base`'s that divide."""
    own = getattr(strategy.layers, "microbatches", None)
    if own is not None:
        return replace(base, microbatches=own)
    local = base.batch // strategy.split().count("act_batch")
    if explicit or local < 1:
        return base
    count = next(m for m in range(min(base.microbatches, local), 0, -1) if local % m == 0)
    return replace(base, microbatches=count)


def _verify(plan: _Plan, on_progress: Progress) -> dict[str, dict[str, Any]]:
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
    *,
    on_progress: Progress,
) -> list[Any]:
    """Compiles every case in this process, one after the other; runs in the compile lens's child."""
    return [compile_program(config, s, w, where, on_progress=on_progress) for s, w in cases]


def _compile(plan: _Plan, on_progress: Progress) -> dict[str, dict[str, Any]]:
    found = run_in_child(
        compile_all, plan.config, plan.cases, plan.cluster,
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


def _measure(plan: _Plan, on_progress: Progress) -> dict[str, dict[str, Any]]:
    text, _ = read_text(plan.text, max(w.tokens for _, w in (*plan.cases, *plan.small_cases)))
    out = {}
    for (strategy, workload), (_, small) in zip(plan.cases, plan.small_cases, strict=True):
        config, run = plan.config, workload
        environment: dict[str, str] = {}
        if plan.virtual:
            config, run = plan.small_config.replace(dtype="float32"), small
            environment = cpu_environment(strategy.mesh.size) | {"JAX_ENABLE_X64": "0"}
        measured = run_in_child(
            measure_transformer, config, strategy, run, text, plan.repeats,
            environment=environment,
            on_progress=lambda line: on_progress(f"measure: {line}"),
        )  # fmt: skip
        out[strategy.name] = {"measurement": measured}
    return out


def _only_cpu(cases: Sequence[tuple[Strategy, Workload]]) -> bool:
    """Whether measure has only CPUs at hand and will use virtual devices, and says so.

    Raises:
      ValueError: accelerators, but fewer than a mesh needs.
    """
    platform_name, kind, count = run_in_child(devices_at_hand, environment={})
    if platform_name == "cpu":
        return True
    for strategy, _ in cases:
        if strategy.mesh.size > count:
            raise ValueError(
                f"Strategy '{strategy.name}': mesh {strategy.mesh} needs {strategy.mesh.size} "
                f"devices to measure on, there are {count} ({kind}). Use a mesh of {count}, or leave "
                "out the measure lens."
            )
    return False
