"""Where a collective's operands come from and its result goes, in a compiled program."""

from dataclasses import dataclass

from parallax.hlo.collectives import Collective
from parallax.hlo.module import Computation, Instruction, Module

# These pass on one operand's values, moved, cast or in part.
_MOVING = (
    "bitcast", "copy", "convert", "reshape", "transpose", "optimization-barrier", "all-gather",
    "all-gather-done", "copy-start", "copy-done", "fusion-done", "async-done",
    "collective-permute-done",
)  # fmt: skip
_SLICING = ("slice", "dynamic-slice", "gather")
_SUMMING = {
    *_MOVING, *_SLICING, "add", "tuple", "get-tuple-element", "dynamic-update-slice", "parameter",
    "constant", "broadcast", "multiply", "select", "compare", "subtract", "clamp", "maximum",
    "minimum", "all-reduce-done", "reduce-scatter-done", "iota", "and", "pad",
    "fusion-done",
}  # fmt: skip
_MAX_STEPS = 200
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Origin:
    """The parameter of a program that values come from.

    Attributes:
      parameter: its number in the entry computation.
      invariant: whether the values are the same in every iteration of the loop around: no index of
        the loop chooses a part.
    """

    parameter: int
    invariant: bool


def _callers(module: Module) -> dict[str, tuple[Computation, Instruction]]:
    """Return, for each loop body, the computation and the loop that run it."""
    found = {}
    for computation in module.computations.values():
        for i in computation.instructions:
            if i.opcode == "while":
                for name in i.calls().get("body", ()):
                    found[name] = (computation, i)
    return found


def callers(module: Module) -> dict[str, tuple[Computation, Instruction]]:
    """Return, for each loop body of a module, the computation and the loop that run it."""
    key = ("explain callers",)
    if key not in module._memo:
        module._memo[key] = _callers(module)
    return module._memo[key]


def origin(module: Module, computation: Computation, name: str) -> Origin | None:
    """Follow values back to a parameter of the program; None if they are computed."""
    invariant = True
    for _ in range(_MAX_STEPS):
        i = computation.by_name.get(name)
        if i is None:
            return None
        if i.opcode == "parameter":
            if computation.name == module.entry:
                return Origin(i.parameter, invariant)
            return None
        if i.opcode == "get-tuple-element":
            step = _through_tuple(module, computation, i)
            if step is None:
                return None
            computation, name = step
            continue
        if i.opcode in _SLICING:
            invariant = invariant and i.opcode == "slice"
        elif i.opcode.removesuffix("-start") == "fusion":
            inner = module.computation(i.calls()["calls"][0])
            chosen = _moved_operand(inner)
            if chosen is None:
                return None
            position, sliced = chosen
            invariant = invariant and not sliced
            name = i.operands[position]
            continue
        elif i.opcode not in _MOVING and not i.opcode.startswith("all-gather"):
            return None
        name = i.operands[0]
    return None


def _through_tuple(
    module: Module, computation: Computation, i: Instruction
) -> tuple[Computation, str] | None:
    """Step from an element of a tuple to what was put there; None if an iteration changes it."""
    index = _index(i)
    source = computation.by_name[i.operands[0]]
    if source.opcode == "tuple":
        return computation, source.operands[index]
    if source.opcode == "parameter" and computation.name in callers(module):
        root = next(x for x in computation.instructions if x.is_root)
        if root.opcode != "tuple" or not _passes_on(computation, root.operands[index], index):
            return None
        outer, loop = callers(module)[computation.name]
        before = outer.by_name[loop.operands[0]]
        return (outer, before.operands[index]) if before.opcode == "tuple" else None
    if source.opcode == "while":  # an element that the loop passes on
        body = module.computation(source.calls()["body"][0])
        root = next(x for x in body.instructions if x.is_root)
        before = computation.by_name[source.operands[0]]
        tuples = root.opcode == before.opcode == "tuple"
        if tuples and _passes_on(body, root.operands[index], index):
            return computation, before.operands[index]
        return None
    if source.opcode in ("optimization-barrier",) and source.operands:
        return computation, source.operands[min(index, len(source.operands) - 1)]
    return (computation, source.operands[min(index, len(source.operands) - 1)]) if (
        source.opcode.startswith("all-gather") and source.operands
    ) else None  # fmt: skip


def _passes_on(body: Computation, name: str, index: int) -> bool:
    i = body.by_name[name]
    while i.opcode in ("copy", "bitcast"):
        i = body.by_name[i.operands[0]]
    if i.opcode != "get-tuple-element" or _index(i) != index:
        return False
    return body.by_name[i.operands[0]].opcode == "parameter"


def _moved_operand(inner: Computation) -> tuple[int, bool] | None:
    """Return which operand a fusion moves or casts, and if an index chooses a part of it."""
    i, sliced = next(x for x in inner.instructions if x.is_root), False
    for _ in range(_MAX_STEPS):
        if i.opcode == "parameter":
            return i.parameter, sliced
        if i.opcode in _SLICING:
            sliced = sliced or i.opcode != "slice"
        elif i.opcode not in _MOVING:
            return None
        i = inner.by_name[i.operands[0]]
    return None


def operand_origins(module: Module, computation: Computation, i: Instruction) -> list[Origin]:
    """Return the parameters of the program whose values an instruction takes."""
    found = (origin(module, computation, name) for name in i.operands)
    return [x for x in found if x is not None]


def accumulating_loop(
    module: Module, computation: Computation, collective: Collective
) -> Computation | None:
    """Return the body of the loop that only adds a collective's results up; None if none does.

    Then one collective after that loop gives the same sum. What is sent must not depend on what is
    carried there: a residual stream is a sum too. Inner loops may stack the results.
    """
    starts = [collective.name]
    for _ in range(_MAX_DEPTH):
        if computation.name not in callers(module):
            return None
        uses = [_use(module, computation, start) for start in starts]
        if any(use is None for use in uses):
            return None
        stacked = [k for use in uses for k, adds in use.items() if not adds]  # pyright: ignore[reportOptionalMemberAccess]
        if not stacked:
            return computation if any(uses) else None
        computation, loop = callers(module)[computation.name]
        starts = [
            i.name for i in computation.instructions
            if i.opcode == "get-tuple-element" and i.operands[0] == loop.name
            and _index(i) in stacked
        ]  # fmt: skip
        if not starts:
            return None
    return None


def _index(i: Instruction) -> int:
    return int(i.attributes.get("index", "-1"))


def _use(module: Module, body: Computation, start: str) -> dict[int, bool] | None:
    """Return what a loop does with a value: element -> whether it adds it up, else stacks it.

    None where it does anything else with it.
    """
    root = next(x for x in body.instructions if x.is_root)
    if root.opcode != "tuple":
        return None
    own = {
        _index(i): i.name for i in body.instructions
        if i.opcode == "get-tuple-element" and body.by_name[i.operands[0]].opcode == "parameter"
    }  # fmt: skip
    before, found = _ancestors(body, start), {}
    for index, name in enumerate(root.operands):
        above = _ancestors(body, name, stop=start)
        if start not in above:
            continue
        carried = own.get(index)
        kinds = _kinds(module, body, name, start)
        if carried is None or carried not in above or carried in before or kinds is None:
            return None
        found[index] = "dynamic-update-slice" not in kinds
    return found


def _ancestors(computation: Computation, name: str, stop: str = "") -> set[str]:
    seen, waiting = set(), [name]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        if at != stop:
            waiting += computation.by_name[at].operands
    return seen


def _kinds(module: Module, computation: Computation, name: str, start: str) -> set[str] | None:
    """Return the operations between a value and a result; None if one is no sum, move or write."""
    found: set[str] = set()
    for at in _ancestors(computation, name, stop=start):
        i = computation.by_name[at]
        if at == start or start not in _ancestors(computation, at, stop=start):
            continue
        inside = [i]
        if i.opcode.removesuffix("-start") == "fusion":
            inside = module.computation(i.calls()["calls"][0]).instructions
        found |= {x.opcode for x in inside}
    return found if found <= _SUMMING else None
