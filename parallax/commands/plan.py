"""The `plan` command: the search for the strategy to rent GPUs for, to serve or to train."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from parallax.cost import Rates
from parallax.lenses.environment import missing_compiler
from parallax.meshes.cluster import Cluster, on_network
from parallax.meshes.cluster import cluster as find_cluster
from parallax.meshes.sizes import parse_bytes
from parallax.models.config import DType, ModelConfig
from parallax.parallel.library_attention import is_installed
from parallax.report.search_page import SearchReport
from parallax.report.train_plan_page import TrainPlanReport
from parallax.requests.naming import (
    Compression,
    model_notes,
    parse_compression,
    resolve_model,
    resolve_rates,
)
from parallax.requests.plan import Objective, PlanPhase, PlanRequest
from parallax.search.ranking import rank
from parallax.search.regimes import regime_maps
from parallax.search.results import SearchRequest
from parallax.search.train_ranking import rank_training
from parallax.search.train_results import TRAIN_OBJECTIVES, TrainSearchRequest


def plan(
    model: str | Path | ModelConfig,
    *,
    batch: int,
    phase: PlanPhase = "serve",
    prompt_len: int | None = None,
    output_len: int = 128,
    seq_len: int | None = None,
    max_memory: str | float | None = None,
    cluster: str | Cluster = "h100_2x8",
    network: str | None = None,
    objective: Objective = "tps",
    max_tpot_s: float | None = None,
    compile_top: int | None = None,
    dtype: DType | None = None,
    compression: list[str] | Compression = None,
    kernels: str | None = None,
    rates: Rates | str | Path | None = None,
    regimes: bool = False,
    on_progress: Callable[[str], None] = lambda line: None,
) -> SearchReport | TrainPlanReport:
    """Rank every strategy for serving prompts, or training; compile the best and rank them again.

    Args:
      model: a paper's name, a folder with config.json (or its config.json), or a ModelConfig.
      batch: prompts served together, or sequences of a training step, over all devices.
      phase: "serve", or "train": then also how weights and optimizer state are sharded, the
        pipeline's schedule, the microbatches and what is recomputed.
      prompt_len, output_len: tokens of each prompt, and new tokens for each; of serving alone.
      seq_len: tokens of each sequence; of training alone.
      max_memory: the memory per GPU that a training step may need, in bytes or such as "60GB";
        None is what the GPU has.
      cluster: a name or a Cluster.
      network: network between its nodes, by name; None leaves the cluster as it is.
      objective: "tps", "tpot" (of serving alone) or "energy".
      max_tpot_s: the largest time per output token, in seconds; slower candidates are left out.
      compile_top: the number of best candidates to compile; 0 ranks by the analytical model alone;
        None is 3, in training 1.
      dtype: the dtype of parameters and activations; None is the model's own.
      compression: formats the matrices may be stored in, such as "int8,int8+2:4", or several to
        try; "none" is the model as it is. A compressed model computes another function.
      kernels: "mosaic" or "cudnn": the kernels that estimates and compiled programs use where they
        apply; None is XLA's (see `Strategy.kernels`).
      rates: constants of the GPU, or a file that `parallax calibrate` wrote; None takes those
        shipped.
      regimes: also makes maps of which strategy wins over length, batch, width, devices, experts.
      on_progress: called with a line whenever something starts.

    Returns:
      A report that prints as a table, shows itself in a notebook, and saves plan.json, plan.html
      and the winner as a strategy file.

    Raises:
      ValueError: the request cannot be planned; the message says why.
      ModuleNotFoundError: the compiler is not installed and compile_top is not 0.
    """
    request = PlanRequest(
        model=model,
        phase=phase,
        batch=batch,
        prompt_len=prompt_len,
        output_len=output_len,
        seq_len=seq_len,
        max_memory=max_memory,
        cluster=cluster,
        network=network,
        objective=objective,
        max_tpot_s=max_tpot_s,
        compile_top=compile_top,
        dtype=dtype,
        compressions=_several(compression),
        kernels=kernels,
        rates=rates,
        regimes=regimes,
    )
    request.refuse_unused()
    return run_plan(request, on_progress=on_progress)


def _several(compression: list[str] | Compression) -> tuple[Compression | str, ...]:
    if isinstance(compression, list):
        return tuple(compression)
    return () if compression is None else (compression,)


def run_plan(
    request: PlanRequest, *, on_progress: Callable[[str], None]
) -> SearchReport | TrainPlanReport:
    """Run a plan request, as `plan` does."""
    _check(request)
    _check_compiler(request)
    named = request.cluster
    cluster = find_cluster(named) if isinstance(named, str) else named
    cluster = on_network(cluster, request.network)
    rates = resolve_rates(request.rates, cluster)
    config, _ = resolve_model(request.model, dtype=request.dtype)
    served = (request.prompt_len or 0) + request.output_len
    tokens = request.seq_len or 0 if request.phase == "train" else served
    for note in model_notes(request.model, config, tokens):
        on_progress(f"{config.name}: {note}")
    if request.phase == "train":
        return _for_training(request, config, cluster, rates, on_progress)
    assert request.prompt_len is not None
    formats = tuple(dict.fromkeys(map(parse_compression, request.compressions or (None,))))
    asked = SearchRequest(
        config, request.batch, request.prompt_len, request.output_len, cluster.name,
        request.objective, request.max_tpot_s, formats, request.kernels,
    )  # fmt: skip
    search = rank(
        asked, cluster, rates=rates, compile_top=request.compiled, on_progress=on_progress
    )
    maps = ()
    if request.regimes:
        on_progress("maps of regimes")
        maps = regime_maps(
            config, cluster, request.batch, request.prompt_len, rates, request.kernels
        )
    return SearchReport(search, cluster, maps)


def _for_training(
    request: PlanRequest,
    config: ModelConfig,
    cluster: Cluster,
    rates: Rates | None,
    on_progress: Callable[[str], None],
) -> TrainPlanReport:
    assert request.seq_len is not None
    limit = request.max_memory
    most = parse_bytes(limit, "plan: max_memory") if isinstance(limit, str) else limit
    asked = TrainSearchRequest(
        config, request.batch, request.seq_len, cluster.name, request.objective, most,
        request.kernels,
    )  # fmt: skip
    search = rank_training(
        asked, cluster, rates=rates, compile_top=request.compiled, on_progress=on_progress
    )
    named = "MODEL" if isinstance(request.model, ModelConfig) else str(request.model)
    return TrainPlanReport(search, cluster, named)


def _check_compiler(request: PlanRequest) -> None:
    if request.compiled and (missing := missing_compiler()):
        raise ModuleNotFoundError(
            f"{missing} Or rank by the analytical model alone: --compile_top=0."
        )
    if request.kernels == "cudnn" and request.compiled and not is_installed():
        raise ModuleNotFoundError(
            "plan: kernels='cudnn' compiles with cuDNN, which is not installed (pip install "
            "nvidia-cudnn-cu12). Or rank by the analytical model alone: --compile_top=0."
        )


def _check(request: PlanRequest) -> None:
    if request.phase not in get_args(PlanPhase):
        known = ", ".join(get_args(PlanPhase))
        raise ValueError(f"plan: phase must be one of {known}; got {request.phase!r}.")
    needed = ("batch", "seq_len") if request.phase == "train" else ("batch", "prompt_len")
    for name in (*needed, "output_len"):
        value = getattr(request, name)
        if value is None:
            raise ValueError(
                f"--{name} is missing: phase={request.phase} needs it. Give the tokens per "
                f"{'sequence' if request.phase == 'train' else 'prompt'}."
            )
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"plan: {name} must be a positive integer, got {value!r}.")
    if request.objective not in get_args(Objective):
        known = ", ".join(get_args(Objective))
        raise ValueError(f"plan: objective must be one of {known}; got {request.objective!r}.")
    if request.phase == "train" and request.objective not in TRAIN_OBJECTIVES:
        raise ValueError(
            f"plan: objective {request.objective!r} is one of serving; phase=train has "
            f"{' and '.join(TRAIN_OBJECTIVES)}."
        )
    limit = request.max_tpot_s
    if limit is not None and not limit > 0:
        raise ValueError(f"plan: max_tpot_s must be above 0 seconds, got {limit!r}.")
