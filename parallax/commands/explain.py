"""Explanations of any program: what the compiler did, at which line of the source, and why."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parallax.commands.compile_for import lowered_call
from parallax.cost import Rates, rates_of
from parallax.meshes.cluster import Cluster
from parallax.meshes.cluster import cluster as find_cluster
from parallax.report.explanation import Explanation


def explain(
    cluster: str | Cluster,
    fn: Callable[..., Any],
    *args: Any,
    mesh: Any = None,
    in_specs: Any = None,
    out_shardings: Any = None,
    donate: int | Sequence[int] = (),
    manual: bool = False,
    out_specs: Any = None,
    trips: Mapping[str, float] | None = None,
    rates: Rates | str | Path | None = None,
    tries: int = 12,
    budget_s: float = 40.0,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Explanation:
    """Explain what the compiler makes of a function on a cluster, by source line.

    The program is compiled as `compile_for` compiles it. Then changes that may help (another spec
    of an argument, a constraint, a donation) are compiled too, one by one, and what they save is
    read off the compiled programs.

    Args:
      cluster, fn, args, mesh, in_specs, out_shardings, donate, manual, out_specs, trips: as for
        `compile_for`.
      rates: constants of the GPU, or a file that `parallax calibrate` wrote; None takes those
        shipped for it.
      tries, budget_s: how many changes are compiled, and for how many seconds, besides the program
        itself; 0 tries none.

    Returns:
      An Explanation: `.findings`, most lost first; `.table()` for a terminal; `.save(folder)` for
      report.html and explanation.json. Shown in a notebook by itself.

    Raises:
      ValueError, ModuleNotFoundError: as `compile_for`.

    Example:
      px.explain("h100_2x8", train_step, params, opt_state, batch, mesh={"data": 16}).table()
    """
    from parallax.explain.explaining import explain_lowered
    from parallax.explain.trying import Budget

    target = find_cluster(cluster) if isinstance(cluster, str) else cluster
    if isinstance(rates, str | Path):
        rates = Rates.load(rates)
    program = lowered_call(
        "explain", target, fn, args, mesh, in_specs=in_specs, out_shardings=out_shardings,
        donate=donate, manual=manual, out_specs=out_specs,
    )  # fmt: skip
    found = explain_lowered(
        program, target, rates or rates_of(target.gpu.name), Budget(tries, budget_s), trips=trips,
        on_progress=on_progress,
    )  # fmt: skip
    return Explanation(found)
