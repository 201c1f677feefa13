"""Explanations of our own strategies: the program of a model under one of them."""

from parallax.commands.resolve import nothing_runs, resolve
from parallax.lenses.child import Progress
from parallax.program import Program
from parallax.report.explanation import Explanation
from parallax.requests.compare import CompareRequest


def explain_strategy(
    request: CompareRequest, budget_s: float, on_progress: Progress = lambda line: None
) -> Explanation:
    """Explain the program that a comparison of one strategy would compile.

    Args:
      request: what `parallax compare` takes, with one strategy.
      budget_s: about how many seconds all may take.

    Raises:
      ValueError: an unknown name, sizes that do not divide, or another number of strategies.
      ModuleNotFoundError: the compiler is not installed; says how to get it.
    """
    found = resolve(request.replace(lenses=("compile",)))
    if len(found.names) != 1:
        raise ValueError(
            f"explain: one program is explained, and {len(found.names)} strategies are named: "
            f"{', '.join(found.names)}. Give one of them as --strategies."
        )
    if not found.cases:
        raise ValueError(nothing_runs({n: why["compile"] for n, why in found.refused.items()}))
    ((strategy, workload),) = found.cases
    return Program(found.config, strategy).explain(
        found.cluster, batch=workload.batch, seq_len=workload.seq_len,
        microbatches=workload.microbatches, packed=workload.packed, phase=request.phase,
        remat=request.remat, rates=found.rates, budget_s=budget_s, on_progress=on_progress,
    )  # fmt: skip
