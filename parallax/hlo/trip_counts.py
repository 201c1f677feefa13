"""The trip counts of loops: those that the compiler knows, that the text shows, or a caller gives.

The trip count of a loop that depends on data (over tiles of routed rows, say) is not in the
program. Callers that know it pass `trips`: named scope -> iterations each time the loop is reached,
as derived from the routing; an average may be fractional.
"""

import math
import re

from parallax.hlo.branches import Trips, loop_trips
from parallax.hlo.limits import MAX_DIGITS, MAX_TRIPS, short
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.shapes import HloError

# A loop's own scope is the part of its op_name after those of the loops around it.
_LOOP_BODY = "/while/body/"
# Scopes that JAX makes, around loops of any program: they tell none from another.
_JAX_SCOPE = re.compile(
    r"while|body|cond|branch_\d+_fun|shard_map|eval_jaxpr|closed_call|checkpoint|remat\w*|pjit|"
    r"custom_[jv][vj]p_call\w*|rematted_computation"
)
_SAME = ("bitcast", "copy", "convert", "reshape")


def trip_count(module: Module, computation: Computation, i: Instruction) -> int | None:
    """Return a while loop's trip count if the compiler knows it or its counter shows it."""
    config = i.attributes.get("backend_config", "")
    match = re.search(r'\\?"known_trip_count\\?":\{\\?"n\\?":\\?"([^"\\]*)\\?"\}', config)
    if match is None:
        return _counted(module, computation, i)
    count = match.group(1)
    if not (re.fullmatch(r"[0-9]+", count) and len(count) <= MAX_DIGITS) or int(count) > MAX_TRIPS:
        raise HloError(
            f"line {i.line}: %{i.name}: trip count {short(count)}: expected a "
            f"number from 0 to {MAX_TRIPS}."
        )
    return int(count)


def expected_trips(
    module: Module, computation: Computation, i: Instruction, trips: Trips | None
) -> float | None:
    """Return a loop's trip count from the compiler, or else from `trips`; None where neither knows.

    Raises:
      HloError: scopes disagree about a loop, or a count is not a finite non-negative number.
    """
    known = trip_count(module, computation, i)
    counts = loop_trips(trips)
    if known is not None or not counts:
        return known
    matching = {s: n for s, n in counts.items() if _names(s, i)}
    if len(set(matching.values())) > 1:
        raise HloError(f"%{i.name}: trips name one loop twice, {matching}, in {_own_scope(i)!r}.")
    count = next(iter(matching.values()), None)
    if count is not None and not 0 <= count < math.inf:
        raise HloError(f"trips {matching}: expected trip counts, finite and not negative.")
    return count


def unused_trips(module: Module, trips: Trips | None) -> tuple[str, ...]:
    """Return the names in `trips` that no loop of unknown trip count has."""
    loops = [
        i for computation in module.computations.values() for i in computation.instructions
        if i.opcode == "while" and trip_count(module, computation, i) is None
    ]  # fmt: skip
    named = loop_trips(trips)
    return tuple(sorted(s for s in named if not any(_names(s, i) for i in loops)))


def _own_scope(i: Instruction) -> str:
    return i.op_name.rpartition(_LOOP_BODY)[2]


def _names(scope: str, i: Instruction) -> bool:
    """Return whether a name in `trips` is that of a loop."""
    return bool(scope) and (scope in _own_scope(i) or scope.lstrip("%") == i.name)


def loop_name(i: Instruction) -> str:
    """Return what `trips` may call a loop, and its line, such as `generate (line 12)`.

    That is the named scope right around it, or the instruction's name where there is none.
    """
    scope = _own_scope(i).removesuffix("/while").rpartition("/")[2]
    plain = re.fullmatch(r"[\w.\-]+", scope) and not _JAX_SCOPE.fullmatch(scope)
    return f"{scope if plain else i.name} (line {i.line})"


def _counted(module: Module, computation: Computation, i: Instruction) -> int | None:
    """Return the trip count of a loop over a counter: from a constant, by a constant, to another.

    Newer compilers write it into the text; older ones, and dumps before optimisation, do not.
    """
    calls = i.calls()
    if len(i.operands) != 1 or not ("condition" in calls and "body" in calls):
        return None
    condition, body = (module.computation(calls[key][0]) for key in ("condition", "body"))
    limit = _limit(_Value(module, condition, _root(condition)))
    initial, new = computation.by_name[i.operands[0]], _root(body)
    if limit is None or not initial.opcode == new.opcode == "tuple":
        return None
    index, end = limit
    if index >= min(len(initial.operands), len(new.operands)):
        return None
    start = _Value(module, computation, computation.by_name[initial.operands[index]]).constant()
    step = _step(_Value(module, body, body.by_name[new.operands[index]]), index)
    return None if start is None or step is None else max(0, -(-(end - start) // step))


def _limit(test: "_Value") -> tuple[int, int] | None:
    """Return which element of the state a condition wants below which constant."""
    below = {"LT": 0, "LE": 1}.get(test.i.attributes.get("direction", ""))
    if test.i.opcode != "compare" or len(test.i.operands) != 2 or below is None:
        return None
    index, end = test.operand(0).element(), test.operand(1).constant()
    return None if index is None or end is None else (index, end + below)


def _step(new: "_Value", index: int) -> int | None:
    """Return the positive constant that an iteration adds to an element of the state."""
    if new.i.opcode != "add" or len(new.i.operands) != 2:
        return None
    parts = [new.operand(n) for n in (0, 1)]
    steps = [p.constant() for p in parts if p.element() != index]
    return steps[0] if len(steps) == 1 and (steps[0] or 0) > 0 else None


def _root(computation: Computation) -> Instruction:
    return next(i for i in computation.instructions if i.is_root)


class _Value:
    """The value of an instruction, followed through copies and into the fusion that makes it."""

    def __init__(self, module: Module, computation: Computation, i: Instruction, outer=()):
        self.module, self.computation, self.i, self.outer = module, computation, i, outer
        self._follow()

    def _follow(self) -> None:
        for _ in range(1000):
            calls = self.i.calls()
            if self.i.opcode in _SAME and len(self.i.operands) == 1:
                self.i = self.computation.by_name[self.i.operands[0]]
            elif self.i.opcode == "parameter" and self.outer:
                self.computation, name, self.outer = self._argument()
                self.i = self.computation.by_name[name]
            elif self.i.opcode in ("fusion", "call") and ("calls" in calls or "to_apply" in calls):
                called = self.module.computation((calls.get("calls") or calls["to_apply"])[0])
                self.outer = (self.computation, self.i.operands, self.outer)
                self.computation, self.i = called, _root(called)
            else:
                return

    def _argument(self):
        computation, operands, outer = self.outer
        number = min(self.i.parameter, len(operands) - 1)
        return computation, operands[number], outer

    def operand(self, n: int) -> "_Value":
        i = self.computation.by_name[self.i.operands[n]]
        return _Value(self.module, self.computation, i, self.outer)

    def constant(self) -> int | None:
        return self.i.literal if self.i.opcode == "constant" else None

    def element(self) -> int | None:
        """Return which element of the computation's one parameter it is; None for anything else."""
        if self.outer or self.i.opcode != "get-tuple-element":
            return None
        source = self.computation.by_name[self.i.operands[0]]
        index = self.i.attributes.get("index", "")
        return int(index) if source.parameter >= 0 and index.isdigit() else None
