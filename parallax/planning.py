"""Which strategy to rent GPUs for: the search as one call."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from parallax.cost import Rates
from parallax.lenses.environment import missing_compiler
from parallax.meshes.cluster import Cluster
from parallax.meshes.cluster import cluster as find_cluster
from parallax.models.config import DType, ModelConfig
from parallax.naming import Compression, parse_compression, resolve_model
from parallax.parallel.library_attention import is_installed
from parallax.report.search_page import SearchReport
from parallax.search.ranking import rank
from parallax.search.regimes import regime_maps
from parallax.search.results import Objective, Request


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
    """Ranks every strategy for serving a batch of prompts; the best are compiled and ranked again.

    Args:
      model: a paper's name, a folder with config.json (or its config.json), or a ModelConfig.
      batch: prompts over all devices, served together.
      prompt_len, output_len: tokens of each prompt, and new tokens for each.
      cluster: a name or a Cluster.
      objective: "tps", "tpot" or "energy".
      max_tpot_s: slower candidates are out, seconds.
      compile_top: so many of the best are compiled; 0 ranks by closed form alone.
      dtype: of parameters and activations; None is the model's own.
      compression: formats the matrices may be stored in, such as "int8,int8+2:4", or several to
        try; "none" is the model as it is. A compressed model computes another function.
      kernels: "mosaic" or "cudnn": what attention and the like are priced and compiled with where
        it can; None is XLA's (see `Strategy.kernels`).
      rates: constants of the GPU, or a file that `parallax calibrate` wrote; None takes those
        shipped.
      regimes: also maps of which strategy wins over length, batch, width, devices and experts.
      on_progress: lines about long work.

    Returns:
      A report: prints as a table, shows itself in a notebook, and saves plan.json, plan.html and
      the winner as a strategy file.

    Raises:
      ValueError: what cannot be planned; says why.
      ModuleNotFoundError: the compiler is not installed and compile_top is not 0.
    """
    where = find_cluster(cluster) if isinstance(cluster, str) else cluster
    config, _ = resolve_model(model, dtype=dtype)
    several = compression if isinstance(compression, list) else [compression]
    compressions = tuple(dict.fromkeys(parse_compression(c) for c in several))
    _check(batch, prompt_len, output_len, objective, max_tpot_s)
    if compile_top and (missing := missing_compiler()):
        raise ModuleNotFoundError(f"{missing} Or rank by closed form alone: --compile_top=0.")
    if kernels == "cudnn" and compile_top and not is_installed():
        raise ModuleNotFoundError(
            "plan: kernels='cudnn' compiles with cuDNN, which is not installed (pip install "
            "nvidia-cudnn-cu12). Or rank by closed form alone: --compile_top=0."
        )
    if isinstance(rates, str | Path):
        rates = Rates.load(rates)
    request = Request(
        config, batch, prompt_len, output_len, where.name, objective, max_tpot_s, compressions,
        kernels,
    )  # fmt: skip
    search = rank(request, where, rates=rates, compile_top=compile_top, on_progress=on_progress)
    maps = ()
    if regimes:
        on_progress("maps of regimes")
        maps = regime_maps(config, where, batch, prompt_len, rates, kernels)
    return SearchReport(search, where, maps)


def _check(
    batch: int, prompt_len: int, output_len: int, objective: str, max_tpot_s: float | None
) -> None:
    for name, value in (("batch", batch), ("prompt_len", prompt_len), ("output_len", output_len)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"plan: {name} must be a positive integer, got {value!r}.")
    if objective not in get_args(Objective):
        known = ", ".join(get_args(Objective))
        raise ValueError(f"plan: objective must be one of {known}; got {objective!r}.")
    if max_tpot_s is not None and not max_tpot_s > 0:
        raise ValueError(f"plan: max_tpot_s must be above 0 seconds, got {max_tpot_s!r}.")
