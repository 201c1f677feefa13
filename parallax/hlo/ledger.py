"""The ledger: every collective of a program, what it sends, how often, and what runs meanwhile."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from parallax.bounds import wire_bytes
from parallax.hlo.flops import Flops, executions, instruction_flops
from parallax.hlo.groups import axes_of_groups, axes_of_pairs, parse_groups, parse_pairs
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.parse import parse_module
from parallax.hlo.shapes import HloError, Shape

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_REFUSED = ("ragged-all-to-all", "collective-broadcast", "send", "recv")


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: HLO name.
      axes: mesh axes it runs over, in mesh order; None if its groups are no set of axes. Of a
        permute: the fewest axes within whose groups all its pairs stay.
      group_size: devices that take part together.
      payload_bytes: S, the full array (all-gather: gathered; reduce-scatter: input).
      wire_bytes: bytes leaving a device in one execution, under ring algorithms. For a permute:
        of a device that sends.
      count: executions in one run, loops multiplied out.
      dtype: HLO name.
      op_name: where in the Python program it came from.
      is_async: the compiled program starts it and waits for it in two instructions.
      gemms_between, flops_between: matrix products scheduled between start and done. Not "hidden":
        how much of the transfer they cover is for a model to say.
      pairs: (sender, receiver) of a permute.
      groups: of the others.
    """

    kind: str
    axes: tuple[str, ...] | None
    group_size: int
    payload_bytes: int
    wire_bytes: float
    count: int
    dtype: str
    op_name: str
    is_async: bool = False
    gemms_between: int = 0
    flops_between: float = 0.0
    pairs: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def async_with_compute(self) -> bool:
        """Async, with at least one matrix product between start and done."""
        return self.is_async and self.gemms_between > 0

    @property
    def total_bytes(self) -> float:
        """Bytes leaving a device in one run."""
        return self.wire_bytes * self.count

    @property
    def senders(self) -> int:
        """Devices that send, of all: fewer in a permute that does not wrap."""
        return sum(a != b for a, b in self.pairs) or sum(len(g) for g in self.groups)


@dataclass(frozen=True)
class Ledger:
    """All collectives of a program."""

    collectives: tuple[Collective, ...]

    def __iter__(self) -> Iterator[Collective]:
        return iter(self.collectives)

    def __len__(self) -> int:
        return len(self.collectives)

    def total(self, kind: str | None = None, axes: tuple[str, ...] | None = None) -> float:
        """Bytes leaving a device in one run, of one kind and over one set of axes if given."""
        return sum(
            c.total_bytes
            for c in self
            if (kind is None or c.kind == kind) and (axes is None or c.axes == axes)
        )

    def by_kind_and_axes(self) -> dict[tuple[str, tuple[str, ...] | None], float]:
        """Bytes leaving a device in one run, by kind and mesh axes."""
        keys = dict.fromkeys((c.kind, c.axes) for c in self)
        return {key: sum(c.total_bytes for c in self if (c.kind, c.axes) == key) for key in keys}


def read_ledger(program: str | Module, mesh_axes: Mapping[str, int]) -> Ledger:
    """The ledger of a compiled program.

    Args:
      program: `compiled.as_text()`, or what `parse_module` made of it.
      mesh_axes: mesh axis -> size, in the order of the mesh the program was compiled for.

    Raises:
      HloError: a collective whose count depends on data, or that is not understood, or a mesh of
        another size than the program's.
    """
    module = parse_module(program) if isinstance(program, str) else program
    devices = math.prod(mesh_axes.values())
    if devices != module.num_partitions:
        raise HloError(
            f"module {module.name}: compiled for {module.num_partitions} partitions, mesh axes "
            f"{dict(mesh_axes)} make {devices}. Pass the mesh it was compiled for."
        )
    wrapped = _wrapped_in_start(module)
    found = []
    for computation, count, branch in executions(module):
        for position, instruction in enumerate(computation.instructions):
            kind = _kind(instruction)
            if kind is None:
                continue
            if count < 0 or branch:
                why = "inside a branch" if branch else "in a loop of unknown trip count"
                raise HloError(
                    f"line {instruction.line}: %{instruction.name} ({kind}) is {why}: how often it "
                    "runs is open."
                )
            between = wrapped.get(computation.name)
            if between is None and _is_async(instruction):
                between = _between(module, computation, position)
            moved = _collective(module, computation, instruction, kind, mesh_axes)
            moved = dataclasses.replace(moved, count=count)
            if between is not None:
                moved = dataclasses.replace(
                    moved, is_async=True, gemms_between=between.gemms, flops_between=between.low
                )
            found.append(moved)
    return Ledger(tuple(c for c in found if c.group_size > 1))


def _kind(instruction: Instruction) -> str | None:
    base = instruction.opcode.removesuffix("-start")
    if base.removesuffix("-done") in _REFUSED:
        raise HloError(
            f"line {instruction.line}: %{instruction.name}: {instruction.opcode} is not "
            "understood: no closed form says how many bytes leave a device."
        )
    return base if base in _KINDS else None


def _is_async(instruction: Instruction) -> bool:
    sync = '"is_sync":true' in instruction.attributes.get("backend_config", "")
    return instruction.opcode.endswith("-start") and not sync


def _wrapped_in_start(module: Module) -> dict[str, Flops]:
    """Computations that a start calls (a fusion holding a collective), with what runs meanwhile."""
    found: dict[str, Flops] = {}
    for computation in module.computations.values():
        for position, instruction in enumerate(computation.instructions):
            calls = instruction.calls().get("calls", ())
            if not (calls and _is_async(instruction)):
                continue
            inside = {c for name in calls for c in _reached(module, name)}
            if any(_kind(i) for name in inside for i in module.computation(name).instructions):
                between = _between(module, computation, position)
                if any(found.get(name, between) != between for name in inside):
                    raise HloError(f"line {instruction.line}: what %{instruction.name} starts is "
                                   "started elsewhere too, beside other work.")  # fmt: skip
                found.update(dict.fromkeys(inside, between))
    return found


def _reached(module: Module, name: str) -> Iterator[str]:
    yield name
    for instruction in module.computation(name).instructions:
        for called in instruction.calls().get("calls", ()):
            yield from _reached(module, called)


def _collective(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    kind: str,
    mesh_axes: Mapping[str, int],
) -> Collective:
    """One execution of a collective."""
    arrays = [a for s in computation.operand_shapes(instruction) for a in s.elements or (s,)]
    sent, pairs, groups = sum(a.n_bytes for a in arrays), (), ()
    axes: tuple[str, ...] | None
    if kind == "collective-permute":
        pairs = parse_pairs(instruction.attributes["source_target_pairs"])
        axes = axes_of_pairs(pairs, mesh_axes)
        size = math.prod(mesh_axes[axis] for axis in axes)
    else:
        text = instruction.attributes["replica_groups"]
        try:
            groups = parse_groups(text, module.num_partitions)
        except HloError as error:
            raise HloError(f"line {instruction.line}: %{instruction.name}: {error}") from None
        axes, size = axes_of_groups(groups, mesh_axes), len(groups[0])
    # What comes back follows from what goes in: a cross-check on sizes and groups.
    times = Fraction(size if kind == "all-gather" else 1, size if kind == "reduce-scatter" else 1)
    received = _result(computation, instruction).n_bytes
    if received != sent * times:
        raise HloError(
            f"line {instruction.line}: %{instruction.name}: {kind} of {sent} bytes in groups of "
            f"{size}: expected {sent * times} bytes back, got {received}."
        )
    payload = max(sent, received)
    return Collective(
        kind=kind, axes=axes, group_size=size, payload_bytes=payload,
        wire_bytes=wire_bytes(kind, size, payload), count=1,
        dtype=",".join(sorted({a.dtype for a in arrays})), op_name=instruction.op_name,
        pairs=pairs, groups=groups,
    )  # fmt: skip


def _result(computation: Computation, instruction: Instruction) -> Shape:
    """What a collective returns: of a start, what its done returns."""
    if not instruction.opcode.endswith("-start"):
        return instruction.shape
    return computation.instructions[_done(computation, instruction)].shape


def _done(computation: Computation, start: Instruction) -> int:
    for position, instruction in enumerate(computation.instructions):
        if instruction.opcode.endswith("-done") and start.name in instruction.operands:
            return position
    raise HloError(
        f"line {start.line}: %{start.name} starts and is never waited for in %{computation.name}."
    )


def _between(module: Module, computation: Computation, start: int) -> Flops:
    """FLOPs scheduled between an async start and its done."""
    done = _done(computation, computation.instructions[start])
    total = Flops()
    for instruction in computation.instructions[start + 1 : done]:
        total += instruction_flops(module, computation, instruction)
    return total
