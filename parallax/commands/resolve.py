"""Resolution of a compare request: everything it will run, checked before anything starts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from parallax.codec import encode
from parallax.commands.check_request import (
    check_choices,
    check_inputs,
    checked_lenses,
    swept_axis,
)
from parallax.commands.devices_to_measure import devices_to_measure
from parallax.commands.sizes import Cases, Size, fit_microbatches, multiple, small_case
from parallax.commands.sweep import SweepAxis, SweepTasks, constant_words, make_tasks
from parallax.cost import Rates
from parallax.distributed.agreement import agree, together
from parallax.lenses.compiling import check_devices
from parallax.lenses.verify_decoding import NEW_TOKENS
from parallax.meshes.cluster import Cluster, on_network
from parallax.meshes.cluster import cluster as find_cluster
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.models.parameters import of_laptop_size
from parallax.papers import PAPERS
from parallax.papers import paper as find_paper
from parallax.papers.paper import Paper
from parallax.programs.sharded_model import ShardedTransformer
from parallax.requests.compare import SWEEP_LENSES, CompareRequest
from parallax.requests.naming import (
    has_own_mesh,
    model_notes,
    parse_compression,
    resolve_model,
    resolve_rates,
)
from parallax.strategies import build
from parallax.strategies.dividing import or_dividing, with_meshes
from parallax.strategies.named import check_name
from parallax.strategy import Strategy
from parallax.workload import Workload

DEFAULT_CLUSTER = "h100_2x8"
DEFAULT_STRATEGIES = ("tensor_pipeline", "ring_sequence", "two_level", "data_parallel")
TRAINING_STRATEGIES = ("fsdp", "hsdp")  # compared too where the phase is train
DEFAULT_BATCH, DEFAULT_SEQ_LEN = 16, 1024
REFUSALS = (ValueError, NotImplementedError)  # why one strategy cannot run; the others still do


@dataclass(frozen=True)
class ResolvedComparison:
    """Everything that a comparison runs.

    Attributes:
      request: the request with names and defaults resolved; it reproduces the run.
      config, workload, cases: what is compiled and predicted, each strategy with its microbatches.
      small_config, small_cases: what is verified, and measured on virtual devices.
      cluster: the cluster compiled for.
      lenses: the lenses that run, in their order.
      names: the names of all strategies asked for, in that order.
      refused: strategy name -> lens -> why the strategy cannot run it.
      moved: strategy name -> why it has another mesh than the usual one.
      notes: what figures of the model do not say by themselves, in words.
      paper: the paper whose experiment it is; None for a free comparison.
      rates: constants of the cost model; None takes those shipped.
      virtual: whether measure has only CPUs and uses virtual devices.
      sweep: what is compiled instead of `cases`; None without a sweep.
      profile: folder of the traces of measured steps; None profiles none.
    """

    request: CompareRequest
    config: ModelConfig
    workload: Workload
    cases: Cases
    small_config: ModelConfig
    small_cases: Cases
    cluster: Cluster
    lenses: tuple[str, ...]
    names: tuple[str, ...]
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    paper: Paper | None = None
    rates: Rates | None = None
    virtual: bool = False
    sweep: SweepTasks | None = None
    profile: Path | None = None


def resolve(request: CompareRequest) -> ResolvedComparison:
    """Resolve the names and defaults of a request and check what it asks for.

    A strategy that cannot run is left out with the reason, as long as another one can.

    Raises:
      ValueError: an unknown name, a missing file, or no strategy that can run; on any of several
        processes, or they differ in a model or strategy.
    """
    found = together("the request", lambda: _resolve(request))
    if "measure" in found.lenses:  # all get here: starting their devices is a meeting of all
        virtual, refused = devices_to_measure(found.cases, found.refused)
        if all(set(found.lenses) <= set(refused.get(name, ())) for name in found.names):
            raise ValueError(nothing_runs({n: refused[n]["measure"] for n in found.names}))
        found = replace(found, virtual=virtual, refused=refused)
    cases = {strategy.name: strategy.to_dict() for strategy, _ in found.cases}
    agree("the request", {"model": encode(found.config), "strategies": cases})
    return found


def _resolve(request: CompareRequest) -> ResolvedComparison:
    check_choices(request)
    axis = swept_axis(request)
    paper = None if request.paper is None else find_paper(request.paper)
    named = _first(request.cluster, paper and paper.cluster, DEFAULT_CLUSTER)
    cluster = on_network(find_cluster(named), request.network)
    lenses = checked_lenses(request)
    check_inputs(request, cluster, lenses)
    make, asked = _Maker(request, cluster), _asked(request, paper)
    made, refused = _make_all(make, asked)
    whole, small = _sizes(request, paper, list(filter(None, made.values())))
    # Over another mesh the small model would have another depth: here it has the whole one's.
    deep = replace(small, config=small.config.replace(num_layers=whole.config.num_layers))
    divides = _check(request, (*lenses, *SWEEP_LENSES), cluster, whole, deep)
    moved: dict[str, str] = {}
    if make.mesh is None and request.sweep is None and paper is None:  # a paper's stay its own
        moved = _moved(made, make, [one for one in asked if isinstance(one, str)], divides)
    if moved:
        whole, small = _sizes(request, paper, list(filter(None, made.values())))
    full = small if request.small else whole
    check = _check(request, lenses, cluster, full, small)
    for strategy in filter(None, made.values()):
        try:
            check(strategy)
        except REFUSALS as error:
            refused[strategy.name] = with_meshes(error, strategy.name, (cluster.devices,), divides)
    request.training_options().check(list(filter(None, made.values())))
    able = [s for name, s in made.items() if s is not None and name not in refused]
    if not able:
        raise ValueError(nothing_runs(refused))
    small_cases = tuple(small_case(s, small, request.phase) for s in able)
    comparison = ResolvedComparison(
        request=_resolved(request, full.config, cluster, lenses, asked),
        config=full.config, workload=full.base,
        cases=small_cases if request.small else full.cases(able),
        small_config=small.config, small_cases=small_cases,
        cluster=cluster, lenses=lenses, names=tuple(made),
        refused={name: dict.fromkeys(lenses, why) for name, why in refused.items()}, moved=moved,
        notes=model_notes(request.model, full.config, full.base.seq_len), paper=paper,
        rates=resolve_rates(request.rates, cluster),
    )  # fmt: skip
    if axis is not None:
        comparison = replace(comparison, sweep=_sweep(comparison, axis, make, full))
    return comparison


@dataclass(frozen=True)
class _Maker:
    """The constructor of a request's strategies for a cluster."""

    request: CompareRequest
    cluster: Cluster

    @property
    def mesh(self) -> MeshSpec | None:
        mesh = self.request.mesh
        return MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh

    def named(self, name: str, mesh: MeshSpec | None, cluster: Cluster) -> Strategy:
        devices, node_size = cluster.devices, cluster.gpus_per_node
        made = build(name, mesh, devices=devices, node_size=node_size, cluster=cluster.name)
        return self.changed(made)

    def changed(self, strategy: Strategy) -> Strategy:
        """Return a strategy with the request's kernels and training options."""
        kernels = self.request.kernels
        strategy = self.request.training_options().apply(strategy)
        return strategy if kernels is None else strategy.replace(kernels=kernels)


def _model_and_workloads(
    request: CompareRequest, paper: Paper | None, batches: Sequence[int]
) -> tuple[ModelConfig, Workload, Workload]:
    """Return the model, its workload and that of the small model.

    A batch that neither request nor paper chooses is a multiple of all `batches`.
    """
    config, source = _model(request, paper)
    if request.dtype is not None:
        config = config.replace(dtype=request.dtype)
    if request.compression is not None:
        config = config.replace(compression=parse_compression(request.compression))
    usual = Workload(multiple(DEFAULT_BATCH, batches), DEFAULT_SEQ_LEN)
    base = source.workload if source else usual
    small = source.small_workload if source else Workload(16, 32, 2)
    names = ("batch", "seq_len", "microbatches")
    given = {n: v for n in names if (v := getattr(request, n)) is not None}
    packed = request.packed
    return config, replace(base, **given, packed=packed), replace(small, packed=packed)


def _model(request: CompareRequest, paper: Paper | None) -> tuple[ModelConfig, Paper | None]:
    """Return the model, and the paper whose workload it runs."""
    model = request.model
    if model is not None:
        source = PAPERS.get(model, paper) if isinstance(model, str) else paper
        return resolve_model(model)[0], source
    if paper is None:
        raise ValueError(
            "neither a paper nor a model is given. Give --model=FOLDER or --paper=NAME (`parallax "
            "list papers`), in Python model= or paper=."
        )
    return paper.config, paper


def _first(*values: str | None) -> str:
    """Return the first value that is not None."""
    return next(v for v in values if v is not None)


def _asked(request: CompareRequest, paper: Paper | None) -> tuple[str | Strategy, ...]:
    """Return the strategies asked for: those of files as values, the others as known names."""
    usual = DEFAULT_STRATEGIES + (TRAINING_STRATEGIES if request.phase == "train" else ())
    given = request.strategies or (paper.strategies if paper else usual)
    if request.mesh is not None and all(has_own_mesh(s) for s in given):
        raise ValueError(
            f"mesh {request.mesh} is for strategies given by name, and all of these have a mesh of "
            "their own. Leave it out, or change the mesh in the strategy."
        )
    asked = []
    for one in given:
        if isinstance(one, str) and has_own_mesh(one):
            one = Strategy.load(Path(one))
        elif isinstance(one, str):
            check_name(one)
        asked.append(one)
    return tuple(asked)


def _make_all(
    make: _Maker, asked: Sequence[str | Strategy]
) -> tuple[dict[str, Strategy | None], dict[str, str]]:
    """Return strategies by name, or None and the reason where one cannot be built.

    ValueError if none can be.
    """
    made, refused, mesh = [], {}, make.mesh
    for one in asked:
        try:
            named = isinstance(one, str)
            strategy = make.named(one, mesh, make.cluster) if named else make.changed(one)
            made.append((strategy.name, strategy))
        except REFUSALS as error:
            name = one if isinstance(one, str) else one.name
            made.append((name, None))
            refused[name] = str(error)
    names = [name for name, _ in made]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(
            f"strategies: {', '.join(repeated)} given more than once. Give each a name of its own "
            "in its strategy file."
        )
    if len(refused) == len(made):
        raise ValueError(nothing_runs(refused))
    return dict(made), refused


def _moved(
    made: dict[str, Strategy | None], make: _Maker, names: Sequence[str],
    divides: Callable[[Strategy], None],
) -> dict[str, str]:  # fmt: skip
    """Give strategies whose usual mesh does not divide the model another; return why, by name."""
    notes = {}
    for name in names:
        if (strategy := made.get(name)) is not None:
            made[name], note = or_dividing(strategy, make.cluster.devices, make.changed, divides)
            notes |= {name: note} if note else {}
    return notes


def _sizes(
    request: CompareRequest, paper: Paper | None, strategies: Sequence[Strategy]
) -> tuple[Size, Size]:
    """Return what is asked for, and the small model with sizes that every strategy divides."""
    splits = [s.split() for s in strategies]
    batches = [s.count("act_batch") for s in splits]
    config, workload, base = _model_and_workloads(request, paper, batches)
    lengths = [s.count("act_seq", "act_norm_seq") for s in splits]
    # Two tokens a device at least: one alone has no causal mask.
    length = multiple(max([base.seq_len, *(2 * n for n in lengths)]), lengths)
    base = replace(base, batch=multiple(base.batch, batches), seq_len=length)
    longest = base.seq_len
    if request.phase == "decode" and config.positions == "learned":
        longest += NEW_TOKENS
    stages = math.lcm(
        *(
            split.count("layers") * s.layers.virtual_stages
            for s, split in zip(strategies, splits, strict=True)
        )
    )
    small_config = config.small(max_seq_len=longest)
    chosen = any(getattr(s.layers, "layers", None) is not None for s in strategies)
    if paper is None and not chosen:
        parts = math.lcm(*(s.count("expert") for s in splits))
        devices = max(s.mesh.size for s in strategies)
        small_config = of_laptop_size(small_config, stages, devices, parts)
    whole = Size(config, workload, request.microbatches is not None)
    return whole, Size(small_config, base, False)


def _check(
    request: CompareRequest, lenses: Sequence[str], cluster: Cluster, full: Size, small: Size
) -> Callable[[Strategy], None]:
    """Return what raises where a strategy cannot run; a sweep's points will say so themselves."""
    compiles, decodes = bool(set(SWEEP_LENSES) & set(lenses)), request.phase == "decode"

    def check(strategy: Strategy) -> None:
        if request.sweep is None:
            if compiles:
                check_devices(cluster, strategy.mesh_axes)
            full.check(strategy, new_tokens=int(compiles and decodes))
        if "verify" in lenses:
            small.check(strategy, new_tokens=NEW_TOKENS if decodes else 0)
        elif "measure" in lenses:
            small.check(strategy)

    return check


def nothing_runs(refused: Mapping[str, str]) -> str:
    """Return the error where no strategy can run: the reason of each, in one line."""
    if len(refused) == 1:
        return next(iter(refused.values()))
    said = " ".join(f"{name}: {why}" for name, why in refused.items())
    return f"none of the strategies can run. {said}"


def _resolved(
    request: CompareRequest, config: ModelConfig, cluster: Cluster, lenses: tuple[str, ...],
    asked: Sequence[str | Strategy],
) -> CompareRequest:  # fmt: skip
    """Return the request with its defaults filled in."""
    return request.replace(
        model=request.model if isinstance(request.model, str | None) else config.name,
        strategies=tuple(request.strategies or asked),
        compression=config.compression and ",".join(config.compression),
        cluster=cluster.name,
        lenses=lenses,
    )


def _sweep(comparison: ResolvedComparison, axis: SweepAxis, make: _Maker, full: Size) -> SweepTasks:
    tasks = make_tasks(
        axis, full.base, [strategy for strategy, _ in comparison.cases], comparison.cluster,
        lambda name, cluster: make.named(name, None, cluster),
        lambda strategy, workload: fit_microbatches(strategy, workload, full.explicit),
        lambda strategy, workload: ShardedTransformer(full.config, strategy, workload),
    )  # fmt: skip
    if "verify" not in comparison.lenses and not any(task.strategy for task in tasks):
        reasons = {f"{t.point.strategy} at {t.point.value}": t.point.why_not for t in tasks}
        raise ValueError(nothing_runs(reasons))
    return SweepTasks(axis, tasks, constant_words(axis.axis, full.base, comparison.cluster))
