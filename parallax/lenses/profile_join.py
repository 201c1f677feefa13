"""The join of a trace's events with the instructions of the compiled program that ran."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from parallax.cost.per_operation import OperationCost
from parallax.hlo.branches import Trips
from parallax.hlo.flops import executions
from parallax.hlo.module import Computation, Instruction, Module
from parallax.lenses.profile_events import DeviceEvent, DeviceTrace
from parallax.results.profile_results import OperationTime

# Suffixes of copies of an instruction that later passes make.
_COPY = re.compile(r"(\.(clone|remat\d*)(\.\d+)?)+$")
_LATER = ("-done", "-update")
# These run other operations: a kernel's own name says more than theirs.
_CONTAINERS = ("call", "while", "conditional")


@dataclass(frozen=True)
class Joined:
    """A trace joined with its program. Seconds are of one device in one step.

    `operations` come with the largest error first, or the largest time where no costs were given;
    `unattributed` maps the names of other device events to their seconds, and `unplaced` the names
    of modelled operations that are no single operation of the program.
    """

    operations: tuple[OperationTime, ...]
    unattributed: Mapping[str, float]
    unplaced: Mapping[str, float] = field(default_factory=dict)


def join(
    module: Module,
    trace: DeviceTrace,
    steps: int,
    costs: Mapping[str, OperationCost] | None = None,
    trips: Trips | None = None,
) -> Joined:
    """Attribute each event of a trace to an operation of the compiled program.

    An event belongs to the instruction that its `hlo_op` names: to the fusion or the async start
    around it where that is what the program launches, and to the original where only the name of
    a clone is in one of the two texts. Events without such a name, and those of a call that the
    GPU runs as one graph, go by the name of their kernel, which XLA derives from the instruction's.

    Args:
      module: the parsed text of the compiled program.
      trace: its device events over all steps.
      steps: number of steps in the trace.
      costs: instruction -> modelled cost per step; None leaves the modelled times out.
      trips: trip counts that depend on data, as for `read_ledger`.
    """
    names, runs = OperationNames(module), steps * len(trace.devices)
    measured: defaultdict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    unattributed: defaultdict[str, float] = defaultdict(float)
    for event in trace.events:
        name = names.of_event(event)
        if name is None:
            unattributed[_said(event, module)] += event.self_ns * 1e-9 / runs
        else:
            measured[name] += event.self_ns * 1e-9 / runs
            launches[name] += 1
    modelled = None if costs is None else _modelled(names, costs, measured)
    unplaced = {n: s for n, s in (modelled or {}).items() if n not in names.launched}
    times = _times(module, trips)
    rows = [
        _row(
            module, names.launched[name], times.get(name), measured[name],
            launches[name] / runs, None if modelled is None else modelled.get(name, 0.0),
        )
        for name in names.launched
        if name in measured or (modelled is not None and modelled.get(name))
    ]  # fmt: skip
    rows.sort(key=lambda r: -(r.measured_s if r.error_s is None else abs(r.error_s)))
    return Joined(tuple(rows), _largest_first(unattributed), unplaced)


@dataclass
class OperationNames:
    """The operations that a program launches, by every name that a trace may give them.

    Attributes:
      module: the compiled program.
      launched: name -> instruction of a computation that runs as a sequence of operations.
      owner: name of any instruction -> name of the launched operation that it is part of, ""
        where several are possible.
    """

    module: Module
    launched: dict[str, Instruction] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self._visited: set[str] = set()
        self._visit(self.module.computation(self.module.entry))
        self.owner |= {name: name for name in self.launched}
        for computation in self._visited:
            self._own_done(self.module.computation(computation))
        self._copies: dict[str, str] = {}
        self._kernels: dict[str, str] = {}
        for name, owner in self.owner.items():
            _put(self._copies, _COPY.sub("", name), owner)
            _put(self._kernels, _kernel_name(name), owner)

    def _visit(self, computation: Computation) -> None:
        """Add the operations of a computation, and of those that its loops and branches run."""
        if computation.name in self._visited:
            return
        self._visited.add(computation.name)
        for i in computation.instructions:
            if i.opcode.endswith(_LATER):
                continue
            self.launched[i.name] = i
            runs = i.opcode in _CONTAINERS
            for key, called in i.calls().items():
                for name in called:
                    if runs:
                        self._visit(self.module.computation(name))
                    elif key in ("calls", "called_computations") or i.opcode == "call-start":
                        self._own_inside(self.module.computation(name), i.name)

    def _own_inside(self, computation: Computation, owner: str) -> None:
        """Make an operation the owner of all that it holds, such as a fusion's instructions."""
        for i in computation.instructions:
            _put(self.owner, i.name, owner)
            for called in i.calls().get("calls", ()):
                self._own_inside(self.module.computation(called), owner)

    def _own_done(self, computation: Computation) -> None:
        """Make an async start the owner of the instructions that wait for it."""
        for i in computation.instructions:
            if i.opcode.endswith(_LATER) and i.operands:
                _put(self.owner, i.name, self.owner.get(i.operands[0], ""))

    def find(self, name: str) -> str | None:
        """Return the launched operation of an instruction's name; None if there is not one."""
        name = name.removeprefix("%")
        return self.owner.get(name) or self._copies.get(_COPY.sub("", name)) or None

    def of_event(self, event: DeviceEvent) -> str | None:
        """Return the launched operation of an event; None for one that is not attributed."""
        if event.module and event.module.partition("(")[0] != self.module.name:
            return None
        found = self.find(event.operation) if event.operation else None
        if found is None or self.launched[found].opcode in _CONTAINERS:
            return self._kernels.get(_kernel_name(event.name)) or found
        return found


def _largest_first(seconds: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _put(table: dict[str, str], name: str, owner: str) -> None:
    """Add a name, with the owner "" where another one has it."""
    table[name] = owner if table.get(name, owner) == owner else ""


def _kernel_name(name: str) -> str:
    """Return the name that XLA gives to the kernel of an instruction."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _said(event: DeviceEvent, module: Module) -> str:
    """Return the name that an unattributed event is listed under."""
    name = event.operation or event.name
    if event.module and event.module.partition("(")[0] != module.name:
        return f"{name} of module {event.module}"
    return name


def _modelled(
    names: OperationNames, costs: Mapping[str, OperationCost], measured: Mapping[str, float]
) -> dict[str, float]:
    """Return modelled seconds by launched operation.

    What a call runs without events of its own, as in a graph that the GPU launches as one, is
    modelled as the call if that has events.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for name, cost in costs.items():
        found[names.find(name) or name] += cost.seconds
    for call in [i for i in names.launched.values() if i.opcode == "call" and i.name in measured]:
        for name in _run_by(names.module, call):
            if name in found and name not in measured:
                found[call.name] += found.pop(name)
    return dict(found)


def _run_by(module: Module, i: Instruction) -> Iterator[str]:
    """Yield the names of all that a call, loop or branch runs."""
    if i.opcode in _CONTAINERS:
        for called in (name for group in i.calls().values() for name in group):
            for inner in module.computation(called).instructions:
                yield inner.name
                yield from _run_by(module, inner)


def _times(module: Module, trips: Trips | None) -> dict[str, float | None]:
    """Return how often one step runs each instruction; None where that depends on data."""
    times: dict[str, float | None] = {}
    for computation, count, sides, loop in executions(module, trips):
        for i in computation.instructions:
            before = times.get(i.name, 0.0)
            known = None if sides or loop else float(count)
            times[i.name] = None if before is None or known is None else before + known
    return times


def _row(
    module: Module, i: Instruction, times: float | None, measured_s: float, launches: float,
    modelled_s: float | None,
) -> OperationTime:  # fmt: skip
    frames = module.frames(i)
    source = f"{frames[0].file}:{frames[0].line}" if frames else ""
    return OperationTime(
        i.name, i.opcode, source, i.op_name, times, launches, measured_s, modelled_s
    )
