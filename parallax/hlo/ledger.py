"""The ledger: every collective of a program, what it sends, how often, and what runs meanwhile."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from parallax.bounds import wire_bytes
from parallax.hlo.flops import Flops, executions, instruction_flops
from parallax.hlo.groups import axes_of_groups, axes_of_pairs, parse_groups, parse_pairs
from parallax.hlo.parse import Computation, HloError, Instruction, Module, parse_module

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_REFUSED = ("ragged-all-to-all", "collective-broadcast", "send", "recv")


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: HLO name.
      axes: mesh axes it runs over, in mesh order; None if its groups are no set of axes.
      group_size: devices that take part together.
      payload_bytes: S, the full array (all-gather: gathered; reduce-scatter: input).
      wire_bytes: bytes leaving a device in one execution, under ring algorithms. For a permute: of a
        device that sends.
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
        return {
            key: sum(c.total_bytes for c in self if (c.kind, c.axes) == key) for key in keys
        }


def read_ledger(program: str | Module, mesh_axes: Mapping[str, int]) -> Ledger:
    """The ledger of a compiled program.

    Args:
      program: `compiled.as_text()`, or what `parse_module` made of it.
      mesh_axes: mesh axis -> size, in the order of the mesh the program was compiled for.

    Raises:
      HloError: a collective whose count depends on data, or that is not understood.
    """
    module = parse_module(program) if isinstance(program, str) else program
    found = []
    for computation, count, branch in executions(module):
        for position, instruction in enumerate(computation.instructions):
            kind, is_async = _kind(module, instruction)
            if kind is None:
                continue
            if count < 0 or branch:
                why = "inside a branch" if branch else "in a loop of unknown trip count"
                raise HloError(f"%{instruction.name} ({kind}) is {why}: how often it runs is open.")
            between = Flops()
            if is_async:
                between = _between(module, computation, position)
            found.append(_collective(module, computation, instruction, kind, count, is_async,
                                     between, mesh_axes))  # fmt: skip
    return Ledger(tuple(c for c in found if c.group_size > 1))


def _kind(module: Module, instruction: Instruction) -> tuple[str | None, bool]:
    opcode = instruction.opcode
    base = opcode.removesuffix("-start")
    if base.removesuffix("-done") in _REFUSED:
        raise HloError(f"%{instruction.name}: {opcode} is not understood: its bytes are not static.")
    if base in _KINDS:
        sync = '"is_sync":true' in instruction.attributes.get("backend_config", "")
        return base, opcode.endswith("-start") and not sync
    if opcode == "async-start":
        for called in instruction.calls().get("calls", ()):
            for inner in module.computation(called).instructions:
                if inner.opcode in _KINDS or inner.opcode in _REFUSED:
                    raise HloError(
                        f"%{instruction.name}: wraps {inner.opcode} in async-start, a form that "
                        "is not understood."
                    )
    return None, False


def _collective(
    module, computation, instruction, kind, count, is_async, between, mesh_axes
) -> Collective:
    shapes = computation.operand_shapes(instruction)
    arrays = [s for shape in shapes for s in (shape.elements or (shape,))]
    payload, pairs, groups = sum(a.n_bytes for a in arrays), (), ()
    if kind == "collective-permute":
        pairs = parse_pairs(instruction.attributes.get("source_target_pairs", ""))
        axes = axes_of_pairs(pairs, mesh_axes)
        moving = [p for p in pairs if p[0] != p[1]]
        size = 1 if not moving else _ring_size(axes, mesh_axes, len(pairs))
    else:
        groups = parse_groups(instruction.attributes.get("replica_groups", "{}"),
                              module.num_partitions)  # fmt: skip
        axes, size = axes_of_groups(groups, mesh_axes), len(groups[0])
        if kind == "all-gather":
            payload *= size
    return Collective(
        kind=kind, axes=axes, group_size=size, payload_bytes=payload,
        wire_bytes=wire_bytes(kind, size, payload), count=count,
        dtype=",".join(sorted({a.dtype for a in arrays})), op_name=instruction.op_name,
        is_async=is_async, gemms_between=between.gemms, flops_between=between.low,
        pairs=pairs, groups=groups,
    )  # fmt: skip


def _ring_size(axes, mesh_axes, default) -> int:
    size = 1
    for axis in axes or ():
        size *= mesh_axes[axis]
    return size if axes else default


def _between(module: Module, computation: Computation, start: int) -> Flops:
    """FLOPs scheduled between an async start and its done."""
    first = computation.instructions[start]
    total = Flops()
    for instruction in computation.instructions[start + 1 :]:
        if instruction.opcode.endswith("-done") and first.name in instruction.operands:
            return total
        total += instruction_flops(module, computation, instruction)
    raise HloError(f"%{first.name} starts and is never waited for in %{computation.name}.")


def totals(collectives: Iterable[Collective]) -> dict[tuple[str, tuple[str, ...] | None], float]:
    """Bytes leaving a device by (kind, axes): what two accounts of one program must agree on."""
    return Ledger(tuple(collectives)).by_kind_and_axes()
