"""What a comparison will run, resolved and checked before anything starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from parallax.lenses.child import run_in_child
from parallax.lenses.compiling import check_devices
from parallax.lenses.measuring import devices_at_hand
from parallax.lenses.text import read_text
from parallax.meshes.cluster import Cluster
from parallax.meshes.cluster import cluster as find_cluster
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.naming import has_own_mesh, parse_compression, resolve_model
from parallax.papers import PAPERS
from parallax.papers import paper as find_paper
from parallax.papers.paper import Paper
from parallax.papers.placing import check_budget
from parallax.parallel.split import Remat
from parallax.rules import Phase
from parallax.spmd import ShardedTransformer
from parallax.strategies import STRATEGIES, build
from parallax.strategy import Strategy
from parallax.sweeping import SweepAxis, Task, constant_words, make_tasks, parse_sweep
from parallax.workload import Workload

LENSES = ("verify", "compile", "predict", "measure")
DEFAULT_LENSES = ("verify", "compile", "predict")
SWEEP_LENSES = ("compile", "predict")
DEFAULT_STRATEGIES = ("tensor_pipeline", "ring_sequence", "two_level", "data_parallel")
DEFAULT_BATCH, DEFAULT_SEQ_LEN = 16, 1024


@dataclass(frozen=True)
class Plan:
    """Everything a comparison needs. `virtual`: measure has only CPUs and uses virtual devices.

    With a `sweep`, `tasks` are compiled instead of `cases`, and `constant` says what stays.
    """

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
    phase: Phase
    remat: Remat
    sweep: SweepAxis | None = None
    tasks: tuple[Task, ...] = ()
    constant: str = ""


def make_plan(request: dict[str, Any]) -> Plan:
    """Resolves the arguments of `compare`.

    Raises:
      ValueError: anything unknown, or that does not divide or exist.
    """
    request = {k: v for k, v in request.items() if k != "on_progress"}
    sweep = _sweep(request)
    chosen = None if request["paper"] is None else find_paper(request["paper"])
    config, base, small_base = _model_and_workload(request, chosen)
    where = find_cluster(
        request["cluster"]
        if request["cluster"] is not None
        else chosen.cluster
        if chosen
        else "h100_2x8"
    )
    lenses = _lenses(_given(request, "lenses") or (SWEEP_LENSES if sweep else DEFAULT_LENSES))
    if sweep and not set(lenses) & set(SWEEP_LENSES):
        raise ValueError(f"sweep compiles every point. Use lenses {', '.join(SWEEP_LENSES)}.")
    mesh = request["mesh"]
    mesh = MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh
    asked = _given(request, "strategies") or (chosen.strategies if chosen else DEFAULT_STRATEGIES)
    if mesh is not None and all(has_own_mesh(s) for s in asked):
        raise ValueError(
            f"mesh {mesh} is for strategies given by name, and all of these have a mesh of their "
            "own. Leave it out, or change the mesh in the strategy."
        )

    def make(name: str | Strategy, mesh: MeshSpec | None, where: Cluster) -> Strategy:
        strategy, kernels = _strategy(name, mesh, where), request.get("kernels")
        return strategy if kernels is None else strategy.replace(kernels=kernels)

    made = [make(s, mesh, where) for s in asked]
    repeated = {s.name for s in made if sum(t.name == s.name for t in made) > 1}
    if repeated:
        raise ValueError(
            f"strategies: {', '.join(sorted(repeated))} given more than once. Give each a name of "
            "its own in its strategy file."
        )
    small_base = replace(
        small_base,
        batch=_multiple(small_base.batch, [s.split().count("act_batch") for s in made]),
        seq_len=_multiple(
            small_base.seq_len, [s.split().count("act_seq", "act_norm_seq") for s in made]
        ),
    )
    explicit = request["microbatches"] is not None
    cases = tuple((s, fit_microbatches(s, base, explicit)) for s in made)
    small_config = config.small(max_seq_len=max(config.small().max_seq_len, small_base.seq_len))
    small_cases = tuple((s, fit_microbatches(s, small_base, False)) for s in made)
    if request["small"]:
        config, base, cases = small_config, small_base, small_cases
    tasks = () if sweep is None else make_tasks(
        sweep, base, made, where,
        lambda name, here: make(name, None, here),
        lambda strategy, workload: fit_microbatches(strategy, workload, explicit),
        lambda strategy, workload: ShardedTransformer(config, strategy, workload),
    )  # fmt: skip
    for strategy, workload in () if sweep else cases:
        if {"compile", "predict"} & set(lenses):
            check_devices(where, strategy.mesh)
        ShardedTransformer(config, strategy, workload)
    if {"verify", "measure"} & set(lenses):
        for strategy, workload in small_cases:
            ShardedTransformer(small_config, strategy, workload)
        read_text(request["text"], 1)
    for name, choices in (("phase", get_args(Phase)), ("remat", get_args(Remat))):
        if request[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {request[name]!r}.")
    if request.get("budget") is not None:
        check_budget(request["budget"], where)
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
        "compression": config.compression and ",".join(config.compression),
        "kernels": request.get("kernels"),
        "cluster": where.name,
        "lenses": list(lenses),
        "budget": request.get("budget"),
        "packed": request["packed"],
        "small": request["small"],
        "phase": request["phase"],
        "remat": request["remat"],
        "text": request["text"],
        "repeats": request["repeats"],
        "sweep": request.get("sweep"),
    }
    constant = constant_words(sweep.axis, base, where) if sweep else ""
    return Plan(config, base, cases, small_config, small_cases, where, lenses, request["text"],
                 request["repeats"], chosen, resolved, virtual, request["phase"],
                 request["remat"], sweep, tasks, constant)  # fmt: skip


def _given(request: dict[str, Any], name: str) -> Sequence[Any] | None:
    """A list that was given, None if it was not. ValueError if it is empty."""
    values = request[name]
    if values is not None and not values:
        raise ValueError(f"{name}: the list is empty. Name some, or leave it out.")
    return values


def _sweep(request: dict[str, Any]) -> SweepAxis | None:
    """The swept axis, checked against the other arguments."""
    text = request.get("sweep")
    if text is None:
        return None
    sweep = parse_sweep(text)
    if request.get(sweep.axis) is not None:
        raise ValueError(f"{sweep.axis} is given and swept. Leave out {sweep.axis}.")
    if "measure" in (request["lenses"] or ()):
        raise ValueError("sweep compiles and predicts; it measures nothing. Leave out measure.")
    if sweep.axis == "devices":
        fixed = [s for s in request["strategies"] or () if s not in STRATEGIES]
        if request["mesh"] is not None or fixed:
            what = f"mesh {request['mesh']}" if request["mesh"] is not None else (
                f"strategy {fixed[0] if isinstance(fixed[0], str) else fixed[0].name}"
            )  # fmt: skip
            raise ValueError(
                f"{what} is of one number of devices, and devices are swept. Use names of "
                f"strategies ({', '.join(STRATEGIES)}) without a mesh."
            )
    return sweep


def _model_and_workload(request, chosen: Paper | None) -> tuple[ModelConfig, Workload, Workload]:
    model, source = request["model"], chosen
    if model is not None:
        config, _ = resolve_model(model)
        if isinstance(model, str) and model in PAPERS:
            source = PAPERS[model]
    elif source is None:
        raise ValueError("compare: give paper=, or model=. `parallax list papers` shows them.")
    else:
        config = source.config
    if request["dtype"] is not None:
        config = config.replace(dtype=request["dtype"])
    if request.get("compression") is not None:  # reports from before there was any
        config = config.replace(compression=parse_compression(request["compression"]))
    base = source.workload if source else Workload(DEFAULT_BATCH, DEFAULT_SEQ_LEN)
    small = source.small_workload if source else Workload(16, 80, 4)
    changes = {
        k: request[k] for k in ("batch", "seq_len", "microbatches") if request[k] is not None
    }
    for name, value in changes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    base = replace(base, **changes, packed=request["packed"])
    return config, base, replace(small, packed=request["packed"])


def _multiple(size: int, parts: Sequence[int]) -> int:
    """The least multiple of all `parts` that is at least `size`."""
    unit = math.lcm(*parts)
    return -(-size // unit) * unit


def _lenses(lenses: Sequence[str]) -> tuple[str, ...]:
    unknown = [x for x in lenses if x not in LENSES]
    if unknown:
        raise ValueError(f"unknown lens {unknown[0]!r}. Use some of: {', '.join(LENSES)}.")
    return tuple(x for x in LENSES if x in lenses)


def _strategy(asked: str | Strategy, mesh: MeshSpec | None, where: Cluster) -> Strategy:
    if isinstance(asked, Strategy):
        return asked
    if asked.endswith(".json"):
        return Strategy.load(Path(asked))
    return build(
        asked, mesh, devices=where.devices, node_size=where.gpus_per_node, cluster=where.name
    )


def fit_microbatches(strategy: Strategy, base: Workload, explicit: bool) -> Workload:
    """The workload with the strategy's microbatches, else the most up to `base`'s that divide."""
    own = getattr(strategy.layers, "microbatches", None)
    if own is not None:
        return replace(base, microbatches=own)
    local = base.batch // strategy.split().count("act_batch")
    if explicit or local < 1:
        return base
    count = next(m for m in range(min(base.microbatches, local), 0, -1) if local % m == 0)
    return replace(base, microbatches=count)


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
                f"devices to measure on, there are {count} ({kind}). Use a mesh of {count}, or "
                "leave out the measure lens."
            )
    return False
