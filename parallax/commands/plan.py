"""The `plan` command: the search for the strategy to rent GPUs for, as one call."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from parallax.cost import Rates
from parallax.lenses.environment import missing_compiler
from parallax.meshes.cluster import Cluster
from parallax.meshes.cluster import cluster as find_cluster
from parallax.models.config import DType, ModelConfig
from parallax.parallel.library_attention import is_installed
from parallax.report.search_page import SearchReport
from parallax.requests.naming import Compression, parse_compression, resolve_model, resolve_rates
from parallax.requests.plan import Objective, PlanRequest
from parallax.search.ranking import rank
from parallax.search.regimes import regime_maps
from parallax.search.results import SearchRequest


def plan(
    model: str | Path | ModelConfig,
    *,
    batch: int,
    prompt_len: int,
    output_len: int = 128,
    cluster: str | Cluster = "h100_2x8",
    objective: Objective = "tps",
    max_tpot_s: float | None = None,
    compile_top: int = 5,
    dtype: DType | None = None,
    compression: list[str] | Compression = None,
    kernels: str | None = None,
    rates: Rates | str | Path | None = None,
    regimes: bool = False,
    on_progress: Callable[[str], None] = lambda line: None,
) -> SearchReport:
    """Rank every strategy for serving a batch of prompts; compile the best and rank them again.

    Args:
      model: a paper's name, a folder with config.json (or its config.json), or a ModelConfig.
      batch: prompts served together, over all devices.
      prompt_len, output_len: tokens of each prompt, and new tokens for each.
      cluster: a name or a Cluster.
      objective: "tps", "tpot" or "energy".
      max_tpot_s: the largest time per output token, in seconds; slower candidates are left out.
      compile_top: the number of best candidates to compile; 0 ranks by the analytical model alone.
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
        batch=batch,
        prompt_len=prompt_len,
        output_len=output_len,
        cluster=cluster,
        objective=objective,
        max_tpot_s=max_tpot_s,
        compile_top=compile_top,
        dtype=dtype,
        compressions=tuple(compression) if isinstance(compression, list) else (compression,),
        kernels=kernels,
        rates=rates,
        regimes=regimes,
    )
    request.refuse_unused()
    return run_plan(request, on_progress=on_progress)


def run_plan(request: PlanRequest, *, on_progress: Callable[[str], None]) -> SearchReport:
    """Run a plan request, as `plan` does."""
    _check(request)
    _check_compiler(request)
    named = request.cluster
    cluster = find_cluster(named) if isinstance(named, str) else named
    rates = resolve_rates(request.rates, cluster)
    config, _ = resolve_model(request.model, dtype=request.dtype)
    formats = tuple(dict.fromkeys(map(parse_compression, request.compressions or (None,))))
    asked = SearchRequest(
        config, request.batch, request.prompt_len, request.output_len, cluster.name,
        request.objective, request.max_tpot_s, formats, request.kernels,
    )  # fmt: skip
    search = rank(
        asked, cluster, rates=rates, compile_top=request.compile_top, on_progress=on_progress
    )
    maps = ()
    if request.regimes:
        on_progress("maps of regimes")
        maps = regime_maps(
            config, cluster, request.batch, request.prompt_len, rates, request.kernels
        )
    return SearchReport(search, cluster, maps)


def _check_compiler(request: PlanRequest) -> None:
    if request.compile_top and (missing := missing_compiler()):
        raise ModuleNotFoundError(
            f"{missing} Or rank by the analytical model alone: --compile_top=0."
        )
    if request.kernels == "cudnn" and request.compile_top and not is_installed():
        raise ModuleNotFoundError(
            "plan: kernels='cudnn' compiles with cuDNN, which is not installed (pip install "
            "nvidia-cudnn-cu12). Or rank by the analytical model alone: --compile_top=0."
        )


def _check(request: PlanRequest) -> None:
    for name in ("batch", "prompt_len", "output_len"):
        value = getattr(request, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"plan: {name} must be a positive integer, got {value!r}.")
    if request.objective not in get_args(Objective):
        known = ", ".join(get_args(Objective))
        raise ValueError(f"plan: objective must be one of {known}; got {request.objective!r}.")
    limit = request.max_tpot_s
    if limit is not None and not limit > 0:
        raise ValueError(f"plan: max_tpot_s must be above 0 seconds, got {limit!r}.")
