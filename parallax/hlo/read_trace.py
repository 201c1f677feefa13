"""The reader of execution traces: a scheduled module as steps; unknown forms are refused."""

import re
from dataclasses import dataclass, field

from parallax.hlo.agreement import check_agreement
from parallax.hlo.branches import Trips, sides
from parallax.hlo.collectives import Collective, Ledger
from parallax.hlo.cudnn import fused_attention
from parallax.hlo.declared import Declared, declared_cost
from parallax.hlo.execution_trace import (
    Call,
    Choice,
    ExecutionTrace,
    Gemm,
    Kernel,
    Loop,
    Send,
    Start,
    Step,
    Wait,
)
from parallax.hlo.library import passes, unknown_call
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.opcodes import OPCODES
from parallax.hlo.products import custom_call_target, product
from parallax.hlo.shapes import HloError, Shape
from parallax.hlo.traffic import host_traffic, result_shape, traffic
from parallax.hlo.trip_counts import expected_trips, loop_name, trip_count

_FREE = frozenset({
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id", "replica-id",
    "after-all", "add-dependency", "opt-barrier", "optimization-barrier", "get-dimension-size",
    "domain", "reshape",
})  # fmt: skip
_SENDING = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
            "ragged-all-to-all")  # fmt: skip
_STAGE = re.compile(r"-(start|update|done)$")


def read_trace(module: Module, ledger: Ledger, trips: Trips | None = None) -> ExecutionTrace:
    """Read the execution trace of a scheduled module.

    Args:
      module: the parsed module.
      ledger: the module's ledger, for its collectives.
      trips: as for `read_ledger`.

    Raises:
      HloError: the module is not scheduled, or the cost of something is not understood.
    """
    if not module.is_scheduled:
        raise HloError(
            f"module {module.name} is not scheduled: its text has no order of execution. Use the "
            "text of a compiled program (compiled.as_text(), or XLA's *after_optimizations.txt)."
        )
    check_agreement(module)
    for computation in module.computations.values():
        for i in computation.instructions:
            if _STAGE.sub("", i.opcode) not in OPCODES:
                raise HloError(f"line {i.line}: %{i.name}: the cost of {i.opcode} is not known.")
    reader = _Reader(module, {c.name: c for c in ledger}, trips)
    reader.read(module.entry)
    unknown = {k.unknown for steps in reader.steps.values() for s in steps
               if isinstance(k := getattr(s, "what", s), Kernel) and k.unknown}  # fmt: skip
    return ExecutionTrace(
        module.entry, reader.steps, module.num_partitions, tuple(sorted(unknown)),
        tuple(sorted(reader.open_loops)),
    )  # fmt: skip


@dataclass
class _Reader:
    """The computations of one module read so far, as steps of a trace."""

    module: Module
    collectives: dict[str, Collective]
    trips: Trips | None
    steps: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    open_loops: set[str] = field(default_factory=set)

    def read(self, name: str) -> None:
        """Read the steps of a computation and of all that it runs."""
        if name in self.steps:
            return
        computation = self.module.computation(name)
        steps: list[Step] = []
        waits = set()
        for instruction in computation.instructions:
            steps += self.step(computation, instruction, waits)
        self.steps[name] = tuple(steps)

    def step(self, computation: Computation, i: Instruction, waits: set[str]) -> list[Step]:
        opcode = i.opcode
        if opcode in _FREE or opcode.endswith("-update"):
            return []
        if opcode.endswith("-done"):
            return [Wait(n) for n in i.operands if n in waits]
        if opcode == "while":
            return self.loop(computation, i)
        calls = i.calls()
        if opcode == "conditional":
            return [self.choice(i)]
        if opcode == "call":
            name = calls["to_apply"][0]
            self.read(name)
            return [Call(name)] if self.steps[name] else []
        base = opcode.removesuffix("-start")
        if opcode.endswith("-start"):
            what = self.started(computation, i, base)
            if what is None:
                return []
            if isinstance(what, Send) and '"is_sync":true' in i.attributes.get(
                "backend_config", ""
            ):
                return [what]
            waits.add(i.name)
            return [Start(i.name, what)]
        if base in _SENDING:
            return [*self.sent(i.name)]
        if (inside := self.collective_inside(i)) is not None:
            return [*self.sent(inside)]
        return [self.kernel(computation, i)]

    def choice(self, i: Instruction) -> Choice:
        names = tuple(n for group in i.calls().values() for n in group)
        for name in names:
            self.read(name)
        known = sides(self.module, i, self.trips)
        return Choice(i.name, names, tuple(side.taken for side in known or ()))

    def loop(self, computation: Computation, i: Instruction) -> list[Step]:
        calls = i.calls()
        body, condition = calls["body"][0], calls["condition"][0]
        self.read(body)
        self.read(condition)
        count = expected_trips(self.module, computation, i, self.trips)
        if count is None:
            self.open_loops.add(loop_name(i))
            count = 1.0
        known = trip_count(self.module, computation, i) is not None
        held = self.held(computation, i, body)
        return [Loop(i.name, float(count), body, condition, known, held)]

    def held(
        self, computation: Computation, i: Instruction, body: str
    ) -> tuple[tuple[str, str, float], ...]:
        """Return a loop's arrays that it passes from one iteration to the next unchanged."""
        inside, outside = self.module.computation(body), computation.by_name[i.operands[0]]
        root = next(x for x in inside.instructions if x.is_root)
        if root.opcode != "tuple" or outside.opcode != "tuple":
            return ()
        makers, unchanged = self.makers(computation), []
        for x in inside.instructions:
            if x.opcode != "get-tuple-element" or inside.by_name[x.operands[0]].parameter < 0:
                continue
            place = int(x.attributes["index"])
            after = inside.by_name[root.operands[place]]
            same = after.opcode == "get-tuple-element" and after.attributes["index"] == str(place)
            if same and inside.by_name[after.operands[0]].parameter >= 0:
                outer = makers[outside.operands[place]]
                unchanged.append((x.name, outer, float(x.shape.n_bytes)))
        return tuple(unchanged)

    def started(self, computation: Computation, i: Instruction, base: str) -> Kernel | Send | None:
        if base in _SENDING:
            sends = self.sent(i.name)
            return sends[0] if sends else None
        if base == "async":
            inner = self.module.computation(i.calls()["calls"][0])
            root = next(x for x in inner.instructions if x.is_root)
            if root.opcode in _SENDING:
                sends = self.sent(root.name)
                return sends[0] if sends else None
            return self.kernel(inner, root)
        inside = self.collective_inside(i)
        if inside is not None:
            sends = self.sent(inside)
            return sends[0] if sends else None
        return self.kernel(computation, i)

    def sent(self, name: str) -> list[Send]:
        """Return the send of a collective, [] for one of a single device, not in the ledger."""
        collective = self.collectives.get(name)
        return [] if collective is None else [Send(name, collective)]

    def collective_inside(self, i: Instruction) -> str | None:
        """Return the name of the collective that a fusion holds, which then stands for it all."""
        if i.opcode.removesuffix("-start") != "fusion":
            return None
        names = self.collectives_of(i.calls()["calls"][0])
        if len(names) > 1:
            raise HloError(f"line {i.line}: %{i.name} holds {len(names)} collectives, expected 1.")
        return names[0] if names else None

    def collectives_of(self, name: str) -> list[str]:
        names = []
        for x in self.module.computation(name).instructions:
            if x.opcode.removesuffix("-start") in _SENDING:
                names.append(x.name)
            elif x.opcode.removesuffix("-start") == "fusion":
                names += self.collectives_of(x.calls()["calls"][0])
        return names

    def kernel(self, computation: Computation, i: Instruction) -> Kernel:
        base = i.opcode.removesuffix("-start")
        if base == "collective-broadcast":
            raise HloError(f"line {i.line}: %{i.name}: the cost of {base} is not understood.")
        reads, written = traffic(self.module, computation, i)
        makers = self.makers(computation)
        reads = tuple((makers[name], size) for name, size in reads)
        to_host, from_host = host_traffic(computation, i, reads, written)
        gemms = self.gemms(computation, i)
        made = {"reads": reads, "written_bytes": written, "op_name": i.op_name,
                "to_host_bytes": to_host, "from_host_bytes": from_host}  # fmt: skip
        if (times := passes(self.module, computation, i)) > 1.0:
            reads = tuple((n, b * times) for n, b in reads)
            made |= {"reads": reads, "written_bytes": written * times}
        if base == "custom-call" or unknown_call(computation, i):
            return _library_call(computation, i, gemms, made)
        declared = self.declared_inside(i)
        if declared is not None:
            return _hand_written(i, declared, made)
        return Kernel(i.name, gemms=gemms, **made)

    def declared_inside(self, i: Instruction) -> Declared | None:
        """Return the declared cost of the hand-written kernel that a fusion picks slices for."""
        if i.opcode.removesuffix("-start") != "fusion":
            return None
        inner = self.module.computation(i.calls()["calls"][0])
        found = [declared_cost(x) for x in inner.instructions if x.opcode == "custom-call"]
        return found[0] if len(found) == 1 else None

    def makers(self, computation: Computation) -> dict[str, str]:
        """Map each array to the kernel that made it, resolving aliases; a parameter to itself."""
        key = ("makers", computation.name)
        if key not in self.module._memo:
            makers: dict[str, str] = {}
            for i in computation.instructions:
                renames = i.opcode in ("bitcast", "get-tuple-element") or i.opcode.endswith("-done")
                source = computation.by_name[i.operands[0]] if renames and i.operands else i
                makers[i.name] = (
                    i.name if source.opcode == "parameter" else makers.get(source.name, i.name)
                )
            self.module._memo[key] = makers
        return self.module._memo[key]

    def gemms(self, computation: Computation, i: Instruction) -> tuple[Gemm, ...]:
        """Return the matrix products of one launch, however deep in fusions."""
        found = product(computation, i)
        if found is not None:
            return (Gemm(*found),)
        if i.opcode.removesuffix("-start") != "fusion":
            return ()
        name = i.calls()["calls"][0]
        key = ("gemms", name)
        if key not in self.module._memo:
            inner = self.module.computation(name)
            self.module._memo[key] = tuple(
                g for x in inner.instructions for g in self.gemms(inner, x)
            )
        return self.module._memo[key]


def _library_call(computation: Computation, i: Instruction, gemms: tuple, made: dict) -> Kernel:
    if gemms:
        # A library's workspace is scratch, not traffic.
        made["written_bytes"] = float(_first(result_shape(i)).n_bytes)
        return Kernel(i.name, gemms=gemms, **made)
    attention = fused_attention(computation, i)
    if attention is not None:
        return Kernel(i.name, attention=attention, **made)
    declared = declared_cost(i)
    if declared is not None:
        return _hand_written(i, declared, made)
    if custom_call_target(i) == "AllocateBuffer" and result_shape(i).host_bytes:
        made |= {"written_bytes": 0.0, "to_host_bytes": 0.0}  # memory is set aside, not written
    return Kernel(i.name, unknown=unknown_call(computation, i), **made)


def _hand_written(i: Instruction, declared: Declared, made: dict) -> Kernel:
    """Make a kernel with the cost that its author declared."""
    read = i.operands[0] if i.operands else i.name
    made |= {"reads": ((read, declared.n_bytes),), "written_bytes": 0.0}
    return Kernel(i.name, flops=declared.flops, computes=declared.computes, **made)


def _first(shape: Shape) -> Shape:
    return shape.elements[0] if shape.elements else shape
