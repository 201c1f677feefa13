"""Where the operands of a collective come from, and where its result goes, in a compiled program."""

from dataclasses import dataclass

from parallax.hlo.collectives import Collective
from parallax.hlo.module import Computation, Instruction, Module

# These pass on one operand's values, moved, cast or in part.
_MOVING = ("bitcast", "copy", "convert", "reshape", "transpose", "optimization-barrier", "all-gather",
           "all-gather-done", "copy-done", "async-done", "collective-permute-done")  # fmt: skip
_SLICING = ("slice", "dynamic-slice", "gather")
_MAX_STEPS = 200


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
        elif i.opcode == "fusion":
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
    index = int(i.attributes.get("index", "0"))
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
        if root.opcode == "tuple" and before.opcode == "tuple":
            if _passes_on(body, root.operands[index], index):
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
    if i.opcode != "get-tuple-element" or int(i.attributes.get("index", "-1")) != index:
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


def accumulates(module: Module, computation: Computation, collective: Collective) -> bool:
    """Return whether a loop only adds a collective's result to what it carries.

    Then one collective after the loop gives the same sum. What is sent must not depend on what is
    carried there: a residual stream is a sum too.
    """
    if computation.name not in callers(module):
        return False
    root = next(x for x in computation.instructions if x.is_root)
    if root.opcode != "tuple":
        return False
    start = computation.by_name[collective.name]
    carried = {
        i.name: int(i.attributes.get("index", "-1"))
        for i in computation.instructions
        if i.opcode == "get-tuple-element"
        and computation.by_name[i.operands[0]].opcode == "parameter"
    }
    before = _ancestors(computation, start.name)
    for index, name in enumerate(root.operands):
        above = _ancestors(computation, name, stop=start.name)
        if start.name not in above:
            continue
        own = [g for g, k in carried.items() if k == index]
        if any(g in before for g in own) or not any(g in above for g in own):
            return False
        if not _only_adds(module, computation, name, start.name):
            return False
    return True


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


def _only_adds(module: Module, computation: Computation, name: str, start: str) -> bool:
    """Return whether only sums and moves lie between a collective and a result."""
    for at in _ancestors(computation, name, stop=start):
        i = computation.by_name[at]
        if at == start or start not in _ancestors(computation, at, stop=start):
            continue
        if i.opcode == "fusion":
            inner = module.computation(i.calls()["calls"][0])
            kinds = {x.opcode for x in inner.instructions}
            if not kinds <= {"parameter", "add", "tuple", "constant", *_MOVING, *_SLICING,
                             "get-tuple-element", "dynamic-update-slice", "broadcast", "multiply",
                             "select", "compare"}:  # fmt: skip
                return False
        elif i.opcode not in ("add", "tuple", "get-tuple-element", "all-reduce-done",
                              "reduce-scatter-done", "async-done", *_MOVING):  # fmt: skip
            return False
    return True
