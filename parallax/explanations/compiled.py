"""A compiled program as explanations need it: its text parsed, its cost, each collective's line."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from parallax.cost import Cost, Rates, estimate_cost
from parallax.cost.collectives import collective_seconds
from parallax.explanations.source_lines import SourceLine, users_line
from parallax.hlo.branches import Trips
from parallax.hlo.collectives import Collective, Ledger
from parallax.hlo.execution_trace import ExecutionTrace, Send, Start, Step
from parallax.hlo.flops import executions, instruction_flops
from parallax.hlo.ledger import read_ledger
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.parse import parse_module
from parallax.hlo.read_trace import read_trace
from parallax.meshes.cluster import Cluster

# Operations of JAX that are collectives: what they make, the user wrote.
WRITTEN = (
    "psum", "psum2", "psum_invariant", "pmax", "pmin", "pmean", "all_gather",
    "all_gather_invariant", "all_gather_reduced", "reduce_scatter",
    "unreduced_psum", "unreduced_reduce_scatter",
    "all_to_all", "ppermute", "pbroadcast", "pshuffle", "ragged_all_to_all", "psend", "precv",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A compiled program, read.

    Attributes:
      module: its text, parsed.
      ledger: its collectives.
      work, cost: its kernels, and what one run costs per device.
      memory_bytes: memory per device, as the compiler planned it.
      warnings: what XLA's partitioner warned of.
      cluster, rates: what the cost is estimated for.
    """

    module: Module
    ledger: Ledger
    work: ExecutionTrace
    cost: Cost
    memory_bytes: int
    warnings: tuple[str, ...]
    cluster: Cluster
    rates: Rates

    @property
    def seconds(self) -> float:
        """The modelled seconds of one run."""
        return self.cost.seconds

    @property
    def sent_bytes(self) -> float:
        """The bytes leaving a device in one run."""
        return self.ledger.total()

    @cached_property
    def homes(self) -> dict[str, tuple[Computation, Instruction]]:
        """Each instruction by its name, with its computation."""
        return {i.name: (c, i) for c in self.module.computations.values() for i in c.instructions}

    def line(self, instruction: Instruction) -> SourceLine | None:
        """Return the user's line that an instruction comes from."""
        return users_line(self.module.frames(instruction))

    def line_of(self, collective: Collective) -> SourceLine | None:
        """Return the user's line that a collective comes from."""
        return self.line(self.homes[collective.name][1])

    def is_written(self, collective: Collective) -> bool:
        """Return whether the user's program has the collective; else the partitioner made it."""
        instruction = self.homes[collective.name][1]
        if instruction.is_spmd_generated:
            return False
        return collective.primitive in WRITTEN

    def collective_s(self, collective: Collective) -> float:
        """Return the modelled seconds of all executions of a collective, hidden or not."""
        return collective.count * collective_seconds(collective, self.cluster, self.rates)

    def without(self, names: set[str]) -> float:
        """Return the modelled seconds of one run if some collectives took no time."""
        steps = {
            c: tuple(s for s in x if not _is_send(s, names)) for c, x in self.work.steps.items()
        }
        return estimate_cost(
            dataclasses.replace(self.work, steps=steps), self.cluster, self.rates
        ).seconds


def _is_send(step: Step, names: set[str]) -> bool:
    what = step.what if isinstance(step, Start) else step
    return isinstance(what, Send) and what.collective.name in names


def read_program(
    text: str,
    axes: Mapping[str, int],
    cluster: Cluster,
    rates: Rates,
    memory_bytes: int = 0,
    warnings: tuple[str, ...] = (),
    trips: Trips | None = None,
) -> Program:
    """Read a scheduled module's text and estimate its cost.

    Raises:
      HloError: the text is not understood.
    """
    module = parse_module(text)
    ledger = read_ledger(module, axes, trips=trips)
    work = read_trace(module, ledger, trips)
    cost = estimate_cost(work, cluster, rates)
    return Program(module, ledger, work, cost, memory_bytes, warnings, cluster, rates)


def flops_by_line(program: Program, trips: Trips | None = None) -> dict[SourceLine, float]:
    """Return the FLOPs of matrix products that one device executes, by source line."""
    totals: dict[SourceLine, float] = {}
    for run in executions(program.module, trips):
        computation, count = run.computation, run.times
        for i in computation.instructions:
            if i.calls() or i.opcode.endswith(("-done", "-update")):
                continue
            found = instruction_flops(program.module, computation, i, trips=trips).high
            line = program.line(i) if found else None
            if line is not None:
                totals[line] = totals.get(line, 0.0) + found * count
    return totals
