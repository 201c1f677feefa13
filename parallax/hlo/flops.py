"""The FLOPs of a computation, loops multiplied out: matrix products and hand-written kernels.

Element-wise work is not counted, nor are the matrix-vector products that XLA writes as a multiply
and a reduce: a decoding step of one sequence is bound by their bytes, not by their FLOPs.

The trip count of a loop that depends on data (over tiles of routed rows, say) is not in the
program. Callers that know it pass `trips`: named scope -> iterations each time the loop is reached,
as derived from the routing; an average may be fractional.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from parallax.hlo.cudnn import fused_attention
from parallax.hlo.declared import declared_cost
from parallax.hlo.limits import MAX_DIGITS, MAX_TRIPS, UNREADABLE, short
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.shapes import HloError, Shape

CUBLAS = re.compile(r"__cublas\$(gemm|lt\$matmul.*)")
_DIMS = re.compile(r"\{([0-9]{1,9}(,[0-9]{1,9})*)?\}")
_TARGET = re.compile(r'"([^"]*)"')
# Opcodes whose called computations are applied per element and hold no matrix products.
_PER_ELEMENT = ("reduce", "reduce-window", "scatter", "sort", "map", "select-and-scatter",
                "all-reduce", "reduce-scatter")  # fmt: skip
# A loop's own scope is the part of its op_name after those of the loops around it.
_LOOP_BODY = "/while/body/"
Trips = Mapping[str, float]


@dataclass(frozen=True)
class Flops:
    """The FLOPs and number of matrix products; `low` to `high` where a branch depends on data.

    The number is rounded up where a loop's expected trip count is fractional; FLOPs are not.
    """

    low: float = 0.0
    high: float = 0.0
    gemms: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.low + other.low, self.high + other.high, self.gemms + other.gemms)

    def times(self, n: float) -> "Flops":
        """Return n times the FLOPs; HloError where the products become too many to count."""
        if self.gemms * n > MAX_TRIPS or not self.high * n < math.inf:
            raise HloError(f"loops too long: over {MAX_TRIPS} matrix products, or FLOPs.")
        return Flops(self.low * n, self.high * n, math.ceil(self.gemms * n))


def module_flops(module: Module, scope: str = "", trips: Trips | None = None) -> Flops:
    """Count the matrix-product FLOPs that one device executes in one run.

    Args:
      module: the parsed module.
      scope: count only products whose op_name contains this.
      trips: part of a loop's op_name (a named scope right around it, not around an enclosing loop)
        -> iterations each time the loop is reached. A count that the compiler knows takes
        precedence.

    Raises:
      HloError: a loop with matrix products whose trip count neither the compiler nor `trips` gives,
        or a convolution.
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
    if opcode in ("convolution", "ragged-dot", "scaled-dot"):
        raise HloError(f"%{instruction.name}: FLOPs of {opcode} are not understood.")
    numbers = _dot_numbers(instruction)
    if numbers is not None:
        own = _product(computation, instruction, *numbers)
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
        return _loop_flops(instruction, sum(inside, Flops()), trips)
    names = [name for group in calls.values() for name in group]
    inside = [computation_flops(module, name, scope, trips) for name in names]
    if opcode == "conditional":
        return Flops(min(f.low for f in inside), max(f.high for f in inside),
                     max(f.gemms for f in inside))  # fmt: skip
    return sum(inside, Flops())


def _loop_flops(instruction: Instruction, inside: Flops, trips: Trips | None) -> Flops:
    """Count the FLOPs of a loop of which one iteration has `inside`."""
    count = expected_trips(instruction, trips)
    if count is not None:
        return inside.times(count)
    if inside.high:
        raise HloError(
            f"line {instruction.line}: %{instruction.name}: a loop of unknown trip count holds "
            f"matrix products, op_name {instruction.op_name!r}. Pass trips={{scope: executions "
            "each time it is reached}, with a named scope right around the loop."
        )
    return Flops()


def _fused_flops(computation: Computation, instruction: Instruction) -> float:
    """Count the FLOPs of hand-written kernels and cuDNN's attention; 0 for other custom calls."""
    declared = declared_cost(instruction)
    if declared is not None:
        return declared.flops
    attention = fused_attention(computation, instruction)
    return 0.0 if attention is None else attention.flops


def trip_count(instruction: Instruction) -> int | None:
    """Return a while loop's trip count if the compiler knows it, else None."""
    config = instruction.attributes.get("backend_config", "")
    match = re.search(r'"known_trip_count":\{"n":"([^"]*)"\}', config)
    if match is None:
        return None
    count = match.group(1)
    if not (re.fullmatch(r"[0-9]+", count) and len(count) <= MAX_DIGITS) or int(count) > MAX_TRIPS:
        raise HloError(
            f"line {instruction.line}: %{instruction.name}: trip count {short(count)}: expected a "
            f"number from 0 to {MAX_TRIPS}."
        )
    return int(count)


def expected_trips(instruction: Instruction, trips: Trips | None) -> float | None:
    """Return a loop's trip count from the compiler, or else from `trips`; None where neither knows.

    Raises:
      HloError: scopes disagree about a loop, or a count is not a finite non-negative number.
    """
    known = trip_count(instruction)
    if known is not None or not trips:
        return known
    own = instruction.op_name.rpartition(_LOOP_BODY)[2]
    matching = {scope: n for scope, n in trips.items() if scope and scope in own}
    if len(set(matching.values())) > 1:
        raise HloError(f"%{instruction.name}: trips name one loop twice, {matching}, in {own!r}.")
    count = next(iter(matching.values()), None)
    if count is not None and not 0 <= count < math.inf:
        raise HloError(f"trips {matching}: expected trip counts, finite and not negative.")
    return count


def custom_call_target(instruction: Instruction) -> str:
    match = _TARGET.match(instruction.attributes.get("custom_call_target", ""))
    return match.group(1) if match else ""


def uncounted_calls(module: Module) -> tuple[str, ...]:
    """List the targets of custom calls whose FLOPs are unknown, for a report to name."""
    targets = {
        custom_call_target(i)
        for c in module.computations.values()
        for i in c.instructions
        if i.opcode in ("custom-call", "custom-call-start")
        and declared_cost(i) is None
        and fused_attention(c, i) is None
    }
    return tuple(sorted(t for t in targets if not CUBLAS.match(t)))


def dot_dims(
    computation: Computation, instruction: Instruction
) -> tuple[int, int, int, int] | None:
    """Return (batch, m, n, k) of a matrix product [m, k] x [k, n]; None for anything else."""
    numbers = _dot_numbers(instruction)
    if numbers is None:
        return None
    _product(computation, instruction, *numbers)
    lhs, rhs = (s.dims for s in computation.operand_shapes(instruction)[:2])
    contracting, _, batches = numbers
    k = math.prod(lhs[d] for d in contracting)
    batch = math.prod(lhs[d] for d in batches)
    m, n = math.prod(lhs) // max(1, batch * k), math.prod(rhs) // max(1, batch * k)
    return batch, m, n, k


def _dims(text: str) -> tuple[int, ...]:
    if not _DIMS.fullmatch(text):
        raise HloError(f"dims {short(text)}: expected {{0,1,...}}.")
    return tuple(int(d) for d in re.findall(r"[0-9]+", text))


Numbers = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _dot_numbers(instruction: Instruction) -> Numbers | None:
    """Return both operands' contracting dims and the first's batch dims; None if no product."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode == "dot":
        keys = ("lhs_contracting_dims", "rhs_contracting_dims", "lhs_batch_dims")
        lhs, rhs, batch = (_dims(instruction.attributes.get(key, "{}")) for key in keys)
        return lhs, rhs, batch
    if opcode != "custom-call" or not CUBLAS.match(custom_call_target(instruction)):
        return None
    try:
        config = json.loads(instruction.attributes["backend_config"])["gemm_backend_config"]
        numbers = config["dot_dimension_numbers"]
        keys = ("lhs_contracting_dimensions", "rhs_contracting_dimensions", "lhs_batch_dimensions")
        lhs, rhs, batch = (tuple(int(d) for d in numbers[key]) for key in keys)
    except UNREADABLE:
        raise HloError(f"%{instruction.name}: no dot dimensions in its backend_config.") from None
    return lhs, rhs, batch


def _product(
    computation: Computation,
    instruction: Instruction,
    lhs_contracting: tuple[int, ...],
    rhs_contracting: tuple[int, ...],
    lhs_batch: tuple[int, ...],
) -> float:
    """Count the FLOPs of a product, 2 x output x contracted, and check the shapes' agreement."""
    operands = computation.operand_shapes(instruction)
    if len(operands) < 2:
        raise HloError(f"%{instruction.name}: expected two operands, got {len(operands)}.")
    lhs, rhs, out = operands[0].dims, operands[1].dims, _output(instruction).dims
    if any(d < 0 or dims.count(d) > 1 for dims in (lhs_contracting, rhs_contracting, lhs_batch)
           for d in dims) or set(lhs_contracting) & set(lhs_batch):  # fmt: skip
        raise HloError(f"%{instruction.name}: contracts a dim twice, or one below 0.")
    try:
        inner = math.prod(lhs[d] for d in lhs_contracting)
        same = inner == math.prod(rhs[d] for d in rhs_contracting)
        batch = math.prod(lhs[d] for d in lhs_batch)
    except IndexError:
        raise HloError(f"%{instruction.name}: contracts a dim its operand does not have.") from None
    if not same or math.prod(out) * inner**2 * batch != math.prod(lhs) * math.prod(rhs):
        raise HloError(f"%{instruction.name}: {lhs} times {rhs} over {inner} is not {out}.")
    return 2.0 * math.prod(out) * inner


def _output(instruction: Instruction) -> Shape:
    """Return the product's shape, without a library's workspace or an async start's operands."""
    elements = instruction.shape.elements
    if instruction.opcode.endswith("-start") and len(elements) > 1:
        return elements[1].elements[0] if elements[1].elements else elements[1]
    return elements[0] if elements else instruction.shape


def executions(
    module: Module, trips: Trips | None = None
) -> Iterator[tuple[Computation, float, bool]]:
    """Yield the computations reached from the entry, with their executions and if inside a branch.

    Per-element computations are left out. A computation called from several places comes several
    times. Inside loops whose trip count neither the compiler nor `trips` gives, the executions are
    -1: callers refuse what counts there. Without `trips` executions are whole numbers.
    """

    def visit(name: str, count: float, branch: bool):
        computation = module.computation(name)
        yield computation, count, branch
        for instruction in computation.instructions:
            if instruction.opcode.removesuffix("-start") in _PER_ELEMENT:
                continue
            if instruction.opcode.endswith(("-done", "-update")):
                continue
            times, inside = count, branch
            if instruction.opcode == "while":
                iterations = expected_trips(instruction, trips)
                times = -1 if iterations is None or count < 0 else count * iterations
                if times > MAX_TRIPS:
                    raise HloError(f"line {instruction.line}: %{instruction.name}: loops that run "
                                   f"over {MAX_TRIPS} times in all.")  # fmt: skip
            if instruction.opcode == "conditional":
                inside = True
            for key, names in instruction.calls().items():
                if key == "to_apply" and instruction.opcode.removesuffix("-start") != "call":
                    continue
                for called in names:
                    yield from visit(called, times, inside)

    yield from visit(module.entry, 1, False)
