"""How often the branches of a pipeline's ticks run, by the named scopes around them."""

from fractions import Fraction

import numpy as np

from parallax.hlo.branches import Taken
from parallax.parallel.schedule_plan import plan_of
from parallax.parallel.schedules import Schedule


def schedule_branches(schedule: Schedule, *, is_uniform: bool = False) -> dict[str, Taken]:
    """Return how often each branch of `pipeline_gradients.run_schedule` is taken per tick.

    Args:
      schedule: the table that it runs.
      is_uniform: whether all stages run whatever any stage runs, as they do where layers pass data
        around a ring.

    Returns:
      Named scope -> executions; `trips` of `read_ledger`, `module_flops` and `read_trace`.
    """
    ticks = plan_of(schedule).ticks
    on_all_stages = {
        "embed_of_tick": ticks.embeds, "embed_of_tick_back": ticks.embeds_back,
        "loss_of_tick": ticks.ends, "handoff": ticks.sends, "handoff_back": ticks.sends_back,
    }  # fmt: skip
    own = schedule.virtual_stages * schedule.microbatches
    of_stages = {f"stage_{kind}": ticks.runs[:, n] for n, kind in enumerate(schedule.kinds)}
    return {
        scope: Taken(
            Fraction(own if scope in of_stages and not is_uniform else int(runs.sum()), len(runs)),
            frozenset(map(int, np.flatnonzero(runs))), len(runs),
        )
        for scope, runs in (of_stages | on_all_stages).items()
    }  # fmt: skip
