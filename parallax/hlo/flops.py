"""The FLOPs of a computation, loops multiplied out: matrix products and hand-written kernels.

Element-wise work is not counted, nor are the matrix-vector products that XLA writes as a multiply
and a reduce: a decoding step of one sequence is bound by their bytes, not by their FLOPs.

The trip count of a loop that depends on data (over tiles of routed rows, say) is not in the
program, nor how often the sides of a branch run. Callers that know it pass `trips`: named scope ->
iterations each time the loop is reached, as derived from the routing (an average may be
fractional), or how often a side is `Taken`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from parallax.hlo.branches import Trips, sides
from parallax.hlo.collectives import BranchSide
from parallax.hlo.cudnn import fused_attention
from parallax.hlo.declared import declared_cost
from parallax.hlo.library import unknown_call
from parallax.hlo.limits import MAX_TRIPS
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.products import product
from parallax.hlo.shapes import HloError
from parallax.hlo.trip_counts import expected_trips, loop_name

# Opcodes whose called computations are applied per element and hold no matrix products.
_PER_ELEMENT = ("reduce", "reduce-window", "scatter", "sort", "map", "select-and-scatter",
                "all-reduce", "reduce-scatter")  # fmt: skip


@dataclass(frozen=True)
class Flops:
    """The FLOPs and number of matrix products; `low` to `high` where a branch is not known.

    The number is rounded up where a loop's expected trip count is fractional; FLOPs are not.
    `open` names the loops of unknown trip count that hold products: their FLOPs are those of one
    iteration each time they are reached.
    """

    low: float = 0.0
    high: float = 0.0
    gemms: int | Fraction = 0
    open: frozenset[str] = frozenset()

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.low + other.low, self.high + other.high, self.gemms + other.gemms,
            self.open | other.open,
        )  # fmt: skip

    def times(self, n: float) -> "Flops":
        """Return n times the FLOPs; HloError where the products become too many to count."""
        if self.gemms * n > MAX_TRIPS or not self.high * n < math.inf:
            raise HloError(f"loops too long: over {MAX_TRIPS} matrix products, or FLOPs.")
        return Flops(self.low * n, self.high * n, math.ceil(self.gemms * n), self.open)

    def share(self, part: Fraction) -> "Flops":
        """Return a share of the FLOPs; that of the products stays exact until a loop ends."""
        return Flops(
            self.low * float(part), self.high * float(part), self.gemms * part, self.open
        )  # fmt: skip


def module_flops(module: Module, scope: str = "", trips: Trips | None = None) -> Flops:
    """Count the matrix-product FLOPs that one device executes in one run.

    Args:
      module: the parsed module.
      scope: count only products whose op_name contains this.
      trips: part of a loop's op_name (a named scope right around it, not around an enclosing loop)
        -> iterations each time the loop is reached; or the named scope that a side of a branch
        begins in -> how often it is taken. A count that the compiler knows takes precedence.
        Without either, a loop counts once and is named in the result's `open`.

    Raises:
      HloError: shapes and attributes of a product do not agree.
    """
    return computation_flops(module, module.entry, scope, trips)


def computation_flops(
    module: Module, name: str, scope: str = "", trips: Trips | None = None
) -> Flops:
    """Count the FLOPs of one execution of a computation, see `module_flops`."""
    key = ("flops", name, scope, *sorted((trips or {}).items()))
    if key not in module._memo:
        computation = module.computation(name)
        total = Flops()
        for instruction in computation.instructions:
            total += instruction_flops(module, computation, instruction, scope, trips)
        module._memo[key] = total
    return module._memo[key]


def instruction_flops(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    scope: str = "",
    trips: Trips | None = None,
) -> Flops:
    """Count the FLOPs of one execution of an instruction and all it calls, see `module_flops`."""
    opcode = instruction.opcode
    # Async work is counted at its start, and not again at its done.
    if opcode.endswith(("-done", "-update")):
        return Flops()
    opcode = opcode.removesuffix("-start")
    found = product(computation, instruction)
    if found is not None:
        own = found.flops
        return Flops(own, own, 1) if scope in instruction.op_name else Flops()
    if opcode in _PER_ELEMENT:
        return Flops()
    own = _fused_flops(computation, instruction) if opcode == "custom-call" else 0.0
    if own:  # counts as one product, however many it holds
        return Flops(own, own, 1) if scope in instruction.op_name else Flops()
    calls = instruction.calls()
    if opcode == "while":
        names = [name for key in ("body", "condition") for name in calls.get(key, ())]
        inside = [computation_flops(module, name, scope, trips) for name in names]
        return _loop_flops(module, computation, instruction, sum(inside, Flops()), trips)
    names = [name for group in calls.values() for name in group]
    inside = [computation_flops(module, name, scope, trips) for name in names]
    if opcode == "conditional":
        return _branch_flops(module, instruction, inside, trips)
    return sum(inside, Flops())


def _branch_flops(
    module: Module, instruction: Instruction, inside: list[Flops], trips: Trips | None
) -> Flops:
    """Count the FLOPs of a conditional of whose sides one execution has `inside`."""
    if (known := sides(module, instruction, trips)) is not None:
        each = zip(known, inside, strict=True)
        return sum((f.share(side.taken.executions) for side, f in each), Flops())
    return Flops(
        min(f.low for f in inside), max(f.high for f in inside), max(f.gemms for f in inside),
        sum(inside, Flops()).open,
    )  # fmt: skip


def _loop_flops(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    inside: Flops,
    trips: Trips | None,
) -> Flops:
    """Count the FLOPs of a loop of which one iteration has `inside`."""
    count = expected_trips(module, computation, instruction, trips)
    if count is not None:
        return inside.times(count)
    if not inside.high:
        return Flops()
    return Flops(inside.low, inside.high, inside.gemms, inside.open | {loop_name(instruction)})


def _fused_flops(computation: Computation, instruction: Instruction) -> float:
    """Count the FLOPs of hand-written kernels and cuDNN's attention; 0 for other custom calls."""
    declared = declared_cost(instruction)
    if declared is not None:
        return declared.flops
    attention = fused_attention(computation, instruction)
    return 0.0 if attention is None else attention.flops


def uncounted_calls(module: Module) -> tuple[str, ...]:
    """List the targets of custom calls whose FLOPs are unknown, for a report to name."""
    targets = {
        unknown_call(c, i)
        for c in module.computations.values()
        for i in c.instructions
        if i.opcode in ("custom-call", "custom-call-start")
    }
    return tuple(sorted(targets - {""}))


class Execution(NamedTuple):
    """The executions of a computation in one run.

    Attributes:
      computation: the computation.
      times: its executions; loops of unknown trip count run once, unknown branches are taken.
      sides: the sides of branches around it of which it is not known how often they are taken.
      loop: the name of the innermost loop of unknown trip count around it; "" if there is none.
    """

    computation: Computation
    times: float
    sides: tuple[BranchSide, ...]
    loop: str


def executions(module: Module, trips: Trips | None = None) -> Iterator[Execution]:
    """Yield the computations reached from the entry, with their executions.

    Per-element computations are left out. A computation called from several places comes several
    times. Without `trips` executions are whole numbers.
    """

    def visit(name: str, count: float, around: tuple[BranchSide, ...], loop: str):
        computation = module.computation(name)
        yield Execution(computation, count, around, loop)
        for instruction in computation.instructions:
            if instruction.opcode.removesuffix("-start") in _PER_ELEMENT:
                continue
            if instruction.opcode.endswith(("-done", "-update")):
                continue
            times, inside = count, loop
            if instruction.opcode == "while":
                iterations = expected_trips(module, computation, instruction, trips)
                if iterations is None:
                    inside = loop_name(instruction)
                else:
                    times = count * iterations
                if times > MAX_TRIPS:
                    raise HloError(f"line {instruction.line}: %{instruction.name}: loops that run "
                                   f"over {MAX_TRIPS} times in all.")  # fmt: skip
            if instruction.opcode == "conditional":
                if (known := sides(module, instruction, trips)) is not None:
                    for side in known:
                        executed = count * side.taken.executions
                        yield from visit(side.computation, executed, around, loop)
                    continue
                names = [name for group in instruction.calls().values() for name in group]
                for n, called in enumerate(names):
                    side_taken = BranchSide(instruction.name, n, len(names))
                    yield from visit(called, count, (*around, side_taken), loop)
                continue
            for key, names in instruction.calls().items():
                if key == "to_apply" and instruction.opcode.removesuffix("-start") != "call":
                    continue
                for called in names:
                    yield from visit(called, times, around, inside)

    yield from visit(module.entry, 1, (), "")
