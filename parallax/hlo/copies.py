"""The copies of arguments in a compiled program: bytes that it only moves to another place.

XLA may join products of one operand by laying their weights side by side, or copy a layer's out of
its stack, every time that a step runs. What is multiplied, cast or sent is no copy.
"""

from collections.abc import Iterable, Iterator

from parallax.hlo.branches import Trips
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.traffic import result_shape, traffic
from parallax.hlo.trip_counts import expected_trips

_COPYING = frozenset({"copy", "copy-start", "slice", "dynamic-slice", "concatenate", "transpose",
                      "pad", "reverse"})  # fmt: skip
_RENAMING = frozenset({"bitcast", "reshape", "optimization-barrier", "opt-barrier", "parameter"})
# An array is one of the arguments (True) or not; a tuple is that of each element.
Held = bool | tuple["Held", ...]


def copied_bytes(module: Module, arguments: Iterable[int], trips: Trips | None = None) -> float:
    """Count the bytes of arguments that one run of a program writes again, on one device.

    Args:
      module: the parsed module, after optimisation.
      arguments: numbers of the entry computation's parameters.
      trips: as for `read_ledger`; a loop whose trip count nobody knows counts once.

    Returns:
      The bytes of all copies; of a branch, those of the side that copies most.
    """
    chosen = frozenset(arguments)
    entry = module.computation(module.entry)
    numbers = [i.parameter for i in entry.instructions if i.parameter >= 0]
    held = tuple(number in chosen for number in range(max(numbers, default=-1) + 1))
    return _run(module, module.entry, held, trips)[0]


def _run(
    module: Module, name: str, parameters: tuple[Held, ...], trips: Trips | None
) -> tuple[float, Held]:
    """Return (bytes copied in one run of a computation, whether its result is of the arguments)."""
    computation, held = module.computation(name), dict[str, Held]()
    total, result = 0.0, False
    for i in computation.instructions:
        copied, held[i.name] = _instruction(module, computation, i, held, parameters, trips)
        total += copied
        result = held[i.name] if i.is_root else result
    return total, result


def _instruction(
    module: Module, computation: Computation, i: Instruction, held: dict[str, Held],
    parameters: tuple[Held, ...], trips: Trips | None,
) -> tuple[float, Held]:  # fmt: skip
    operands = tuple(held[name] for name in i.operands)
    if i.opcode == "parameter":
        return 0.0, parameters[i.parameter] if i.parameter < len(parameters) else False
    if i.opcode == "tuple":
        return 0.0, operands
    if i.opcode == "get-tuple-element":
        whole = operands[0]
        return 0.0, whole[int(i.attributes["index"])] if isinstance(whole, tuple) else whole
    if not any(_flat(operands)):
        return 0.0, False
    if i.opcode in _RENAMING or i.opcode.endswith("-done"):
        return 0.0, operands[0]
    if i.opcode in ("while", "conditional", "call", "async-start"):
        return _called(module, computation, i, operands, trips)
    return _launch(module, computation, i, operands)


def _called(
    module: Module, computation: Computation, i: Instruction, operands: tuple[Held, ...],
    trips: Trips | None,
) -> tuple[float, Held]:  # fmt: skip
    """Return what a loop, a branch or a call copies, and whether its result is of arguments."""
    calls = i.calls()
    if i.opcode == "while":
        count = expected_trips(module, computation, i, trips)
        copied, after = _run(module, calls["body"][0], operands, trips)
        return copied * (1.0 if count is None else float(count)), _both(operands[0], after)
    if i.opcode == "conditional":
        sides = [n for names in calls.values() for n in names]
        runs = [_run(module, n, (x,), trips) for n, x in zip(sides, operands[1:], strict=True)]
        return max(copied for copied, _ in runs), False
    return _run(module, next(iter(calls.values()))[0], operands, trips)


def _launch(
    module: Module, computation: Computation, i: Instruction, operands: tuple[Held, ...]
) -> tuple[float, Held]:
    """Return what one kernel copies, and whether its result is of the arguments."""
    moved: Held = i.opcode in _COPYING and operands[0]
    if i.opcode.removesuffix("-start") == "fusion":
        moved = _moved(module.computation(i.calls()["calls"][0]), operands)
    if not any(_flat((moved,))):
        return 0.0, False
    if not isinstance(moved, tuple):
        return traffic(module, computation, i)[1], True
    shapes = zip(result_shape(i).elements, moved, strict=True)
    return float(sum(shape.n_bytes for shape, m in shapes if m is True)), moved


def _moved(body: Computation, operands: tuple[Held, ...]) -> Held:
    """Return whether a fusion's results only move elements of its operands that are arguments'."""
    found: dict[str, Held] = {}
    for i in body.instructions:
        if i.opcode == "parameter":
            found[i.name] = operands[i.parameter]
        elif i.opcode == "tuple":
            found[i.name] = tuple(found[name] for name in i.operands)
        elif i.opcode == "concatenate":
            found[i.name] = any(found[name] is True for name in i.operands)
        else:
            moves = i.opcode in _COPYING or i.opcode in _RENAMING
            found[i.name] = bool(moves and i.operands and found[i.operands[0]] is True)
    return found[next(i.name for i in body.instructions if i.is_root)]


def _flat(held: Iterable[Held]) -> Iterator[bool]:
    for each in held:
        if isinstance(each, tuple):
            yield from _flat(each)
        else:
            yield each


def _both(before: Held, after: Held) -> Held:
    """Return what is of the arguments before a loop and after each iteration."""
    if isinstance(before, tuple) and isinstance(after, tuple):
        return tuple(_both(a, b) for a, b in zip(before, after, strict=True))
    return before is True and after is True
