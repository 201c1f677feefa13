"""The largest arrays in memory at a program's peak, by liveness in its schedule."""

import math
from dataclasses import dataclass

from parallax.explanations.compiled import Program
from parallax.explanations.source_lines import SourceLine
from parallax.hlo.module import Computation, Instruction

# These name memory that another instruction has.
_ALIASES = (
    "bitcast", "get-tuple-element", "tuple", "parameter", "while", "conditional", "constant",
    "optimization-barrier", "after-all", "partition-id", "call",
)  # fmt: skip


@dataclass(frozen=True)
class Buffer:
    """An array that is in memory at the peak.

    Attributes:
      n_bytes: bytes per device; elements: elements per device.
      what: the operation in the Python program.
      line: the user's line.
    """

    n_bytes: int
    elements: int
    dtype: str
    what: str
    line: SourceLine | None


def peak_buffers(program: Program, most: int = 10) -> list[Buffer]:
    """Return the largest arrays of the program's temporary memory at its peak, largest first."""
    live = _Peak(program).of(program.module.entry)[1]
    live.sort(key=lambda i: -_size(i))
    return [
        Buffer(_size(i), _elements(i), _array(i).dtype, i.primitive, program.line(i))
        for i in live[:most]
        if _size(i)
    ]


class _Peak:
    """The largest sets of arrays alive at once, of each computation once."""

    def __init__(self, program: Program):
        self.module, self.known = program.module, {}

    def of(self, name: str) -> tuple[int, list[Instruction]]:
        """Return the bytes and arrays of a computation's own peak, with those of its callees."""
        if name not in self.known:
            self.known[name] = self._find(self.module.computation(name))
        return self.known[name]

    def _find(self, computation: Computation) -> tuple[int, list[Instruction]]:
        owners, last = _lifetimes(computation)
        results = frozenset()
        if computation.name == self.module.entry:  # results are no temporary memory
            results = owners[next(i.name for i in computation.instructions if i.is_root)]
        live: dict[str, Instruction] = {}
        total, best, at_best = 0, (0, []), []
        for position, i in enumerate(computation.instructions):
            if owners[i.name] == {i.name} and i.name not in results:
                live[i.name] = i
                total += _size(i)
            inside, inner = self._called(i)
            if total + inside > best[0]:
                best, at_best = (total + inside, inner), list(live.values())
            for name in [n for n in live if last.get(n, 0) <= position]:
                total -= _size(live.pop(name))
        return best[0], at_best + best[1]

    def _called(self, i: Instruction) -> tuple[int, list[Instruction]]:
        if i.opcode not in ("while", "conditional", "call"):
            return 0, []
        called = [self.of(name) for names in i.calls().values() for name in names]
        return max(called, key=lambda x: x[0], default=(0, []))


def _lifetimes(computation: Computation) -> tuple[dict[str, frozenset[str]], dict[str, int]]:
    """Return whose memory each instruction's value is in, and where that is used last."""
    owners: dict[str, frozenset[str]] = {}
    last: dict[str, int] = {}
    for position, i in enumerate(computation.instructions):
        reached = frozenset().union(*(owners.get(o, frozenset()) for o in i.operands))
        owners[i.name] = frozenset({i.name}) if _owns(i, computation) else reached
        for name in reached | owners[i.name]:
            last[name] = position
        if i.is_root:
            last |= dict.fromkeys(owners[i.name], len(computation.instructions))
    return owners, last


def _owns(i: Instruction, computation: Computation) -> bool:
    if i.opcode in _ALIASES or i.opcode.endswith(("-done", "-update")):
        return False
    if i.opcode == "dynamic-update-slice":
        return False
    # A fusion that writes a part of its operand writes it in place.
    in_place = i.opcode == "fusion" and "dynamic-update-slice" in i.name
    same = any(computation.by_name[o].shape == i.shape for o in i.operands)
    return not (in_place and same)


def _array(i: Instruction):
    elements = i.shape.elements
    if i.opcode.endswith("-start") and len(elements) > 1:
        return elements[1].elements[0] if elements[1].elements else elements[1]
    return elements[0] if elements else i.shape


def _size(i: Instruction) -> int:
    if i.opcode.endswith("-start"):
        return _array(i).n_bytes
    return i.shape.n_bytes - i.shape.host_bytes


def _elements(i: Instruction) -> int:
    return math.prod(_array(i).dims)
