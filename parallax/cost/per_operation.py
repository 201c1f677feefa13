"""The modelled seconds of each operation of a trace, by the name of its instruction."""

from collections.abc import Iterator
from dataclasses import dataclass

from parallax.cost.collectives import collective_seconds
from parallax.cost.estimating import kernel_cost, part_costs
from parallax.cost.rates import Rates
from parallax.cost.recent import Recent
from parallax.hlo.execution_trace import Call, Choice, ExecutionTrace, Kernel, Loop, Send, Start
from parallax.meshes.cluster import Cluster


@dataclass(frozen=True)
class OperationCost:
    """The modelled time of one operation in one run of a program on one device.

    Attributes:
      executions: how often it runs; fractional where a trip count is an average.
      seconds: its own seconds over all executions, also where another operation hides them.
    """

    executions: float
    seconds: float


def operation_costs(
    work: ExecutionTrace, cluster: Cluster, rates: Rates
) -> dict[str, OperationCost]:
    """Estimate the seconds of every operation of a program, as `estimate_cost` does its parts.

    A kernel's time holds its launch gap, a collective's is that of the transfer alone, whether or
    not kernels hide it, and a loop's or branch's is what it takes to decide on the host. A branch
    counts its more expensive side where it is not known how often each is taken.

    Args:
      work: execution trace of a program.
      cluster: the GPUs and their interconnect.
      rates: cost model constants of the GPU.

    Returns:
      Name of the HLO instruction -> its cost; instructions that take no time are left out.
    """
    costs: dict[str, OperationCost] = {}
    own = {name: list(_own_seconds(work, name, cluster, rates)) for name in work.steps}
    for computation, times in _executions(work, cluster, rates):
        for name, count, seconds in own[computation]:
            before = costs.get(name, OperationCost(0.0, 0.0))
            costs[name] = OperationCost(
                before.executions + times * count, before.seconds + times * seconds
            )
    return costs


def _own_seconds(
    work: ExecutionTrace, computation: str, cluster: Cluster, rates: Rates
) -> Iterator[tuple[str, float, float]]:
    """Yield the name, executions and seconds of the steps in one execution of a computation."""
    recent, sm_count = Recent(rates.l2_share * cluster.gpu.l2_bytes), cluster.gpu.sm_count
    for step in work.steps[computation]:
        if isinstance(step, Kernel):
            hits = recent.hits(step)
            yield step.name, 1.0, kernel_cost(step, sm_count, rates, hits).seconds
        elif isinstance(step, Send):
            yield step.name, 1.0, collective_seconds(step.collective, cluster, rates)
        elif isinstance(step, Start) and isinstance(step.what, Send):
            yield step.name, 1.0, collective_seconds(step.what.collective, cluster, rates)
        elif isinstance(step, Start) and isinstance(step.what, Kernel):
            yield step.name, 1.0, kernel_cost(step.what, sm_count, rates).seconds
        elif isinstance(step, Loop) and not step.known:
            yield step.name, 1.0, rates.loop_s * step.count
        elif isinstance(step, Choice):
            yield step.name, 1.0, rates.loop_s


def _executions(
    work: ExecutionTrace, cluster: Cluster, rates: Rates
) -> Iterator[tuple[str, float]]:
    """Yield the computations that a run reaches, with their executions each time."""
    parts = part_costs(work, work.steps, cluster, rates)

    def visit(name: str, times: float) -> Iterator[tuple[str, float]]:
        yield name, times
        for step in work.steps[name]:
            if isinstance(step, Loop):
                yield from visit(step.body, times * step.count)
                yield from visit(step.condition, times * step.count)
            elif isinstance(step, Choice) and step.taken:
                for side, how in zip(step.branches, step.taken, strict=True):
                    yield from visit(side, times * float(how.executions))
            elif isinstance(step, Choice):
                yield from visit(max(step.branches, key=lambda b: parts[b].seconds), times)
            elif isinstance(step, Call):
                yield from visit(step.name, times)

    yield from visit(work.entry, 1.0)
