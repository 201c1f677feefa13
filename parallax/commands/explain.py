"""Explanations of any program: what the compiler did, at which line of the source, and why."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parallax.commands.compile_for import lowered_call
from parallax.commands.inspect import (
    check_finite,
    cluster_of,
    load_rates,
    mesh_axes,
    why_untimed,
)
from parallax.cost import Rates, rates_for
from parallax.hlo import parse_module
from parallax.hlo.caveats import branch_caveats, open_caveats
from parallax.hlo.flops import module_flops
from parallax.meshes.cluster import Cluster, on_network
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
    budget_s: float = 55.0,
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
      tries, budget_s: how many changes are compiled, and about how many seconds all may take; 0
        tries none.

    Returns:
      An Explanation: `.findings`, most lost first; `.table()` for a terminal; `.save(folder)` for
      report.html and explanation.json. Shown in a notebook by itself.

    Raises:
      ValueError, ModuleNotFoundError: as `compile_for`.

    Example:
      px.explain("h100_2x8", train_step, params, opt_state, batch, mesh={"data": 16}).table()
    """
    from parallax.explanations.explaining import explain_lowered
    from parallax.explanations.gathering import gather_facts
    from parallax.explanations.trying import TryBudget

    target = find_cluster(cluster) if isinstance(cluster, str) else cluster
    known = rates_for(target, load_rates(rates))
    program = lowered_call(
        "explain", target, fn, args, mesh, in_specs=in_specs, out_shardings=out_shardings,
        donate=donate, manual=manual, out_specs=out_specs,
    )  # fmt: skip
    budget = TryBudget(tries, budget_s)
    found = explain_lowered(
        program, target, known, budget, trips=trips, on_progress=on_progress
    )  # fmt: skip
    return Explanation(gather_facts(found, program.axes, trips))


def explain_text(
    text: str,
    *,
    cluster: str | Cluster | None = None,
    mesh: str | None = None,
    trips: Mapping[str, float] | None = None,
    network: str | None = None,
    rates: Rates | str | Path | None = None,
) -> Explanation:
    """Explain a compiled module from its text alone, which is not trusted; nothing is tried.

    The text has the collectives, the largest temporary arrays and the FLOPs of each source line,
    and the sums that a loop repeats. It has no memory of the whole program and no warnings.

    Args:
      text, cluster, mesh, trips, network, rates: as for `px.inspect_text`.

    Raises:
      ValueError: the text is truncated, hostile or not understood (HloError), not scheduled or not
        for a GPU, or the cluster has another size.
    """
    from parallax.explanations.compiled import read_program
    from parallax.explanations.explaining import Explained
    from parallax.explanations.gathering import gather_facts
    from parallax.explanations.observations import needed_collectives, sums_per_iteration

    module = parse_module(text)
    axes = mesh_axes(text, mesh, module.num_partitions)
    base = on_network(cluster_of(module, cluster), network)
    known = rates_for(base, load_rates(rates))
    if why := why_untimed(module):
        raise ValueError(f"explain: {why}")
    program = read_program(text, axes, base, known, trips=trips)
    check_finite(module, program.cost)
    flops = module_flops(module, trips=trips)
    loops = {*flops.open, *program.ledger.open_loops, *program.work.open_loops}
    notes = (
        "only the text is known: no change was tried (px.explain does, from the function)",
        *branch_caveats(program.ledger, flops), *open_caveats(loops, program.work.unpriced),
    )  # fmt: skip
    found = sums_per_iteration(program)
    needed = needed_collectives(program, found)
    explained = Explained(program, tuple(found), tuple(needed), notes)
    return Explanation(gather_facts(explained, axes, trips))
