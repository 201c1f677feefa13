"""The facts of an explained program, gathered from its text and from what was traced."""

from collections.abc import Mapping, Sequence

from parallax.cost import known_error_bar
from parallax.cost.totals import unvalidated
from parallax.explanations.buffers import peak_buffers
from parallax.explanations.compiled import Program, flops_by_line
from parallax.explanations.edits import manual_axes
from parallax.explanations.equations import Equation
from parallax.explanations.explaining import Explained
from parallax.explanations.facts import Facts, LineFlops, PeakBuffer, TimedOperation
from parallax.explanations.source_lines import SourceLine
from parallax.explanations.splits import argument_splits, result_splits
from parallax.explanations.subject import Subject
from parallax.hlo.branches import Trips
from parallax.hlo.caveats import branch_caveats, open_caveats, trips_caveats
from parallax.hlo.flops import executions, module_flops
from parallax.hlo.trip_counts import unused_trips
from parallax.lenses.timeline import busiest_body, timeline_of

_MOST_BUFFERS = 10


def gather_facts(
    found: Explained, axes: Mapping[str, int], trips: Trips | None = None
) -> Facts:  # fmt: skip
    """Return all that a report of an explained program shows, as plain values.

    Args:
      found: the program and what was found about it.
      axes: mesh axis -> size, in the order of the program's devices.
      trips: trip counts of loops that stop on data.
    """
    program, subject = found.program, found.subject
    flat = None if subject is None else subject.flat
    low, high = known_error_bar(program.cost, program.rates, program.work)
    timeline, timeline_of_what = _timeline(program, trips)
    return Facts(
        program.module.name, program.cluster, dict(axes),
        f"{program.rates.name} {program.rates.version}",
        program.seconds, low, high, program.cost.exposed_s,
        unvalidated(
            program.work,
            crosses_nodes=program.cost.network_s > 0
            and not program.rates.measured_between_nodes,
        ),
        program.memory_bytes, program.sent_bytes, found.findings, found.needed,
        (*found.notes, *_caveats(program, trips)),
        untried=None if subject is None else found.untried,
        buffers=_buffers(program),
        flops=_flops(program, subject, axes, trips),
        arguments=argument_splits(program, flat), results=result_splits(program, flat),
        timeline=timeline, timeline_of=timeline_of_what,
    )  # fmt: skip


def _caveats(program: Program, trips: Trips | None) -> tuple[str, ...]:
    """Return what the program's figures leave open, in one line each."""
    flops = module_flops(program.module, trips=trips)
    loops = {*flops.open, *program.ledger.open_loops, *program.work.open_loops}
    return (
        *branch_caveats(program.ledger, flops), *open_caveats(loops, program.work.unpriced),
        *trips_caveats(unused_trips(program.module, trips)),
    )  # fmt: skip


def _buffers(program: Program) -> tuple[PeakBuffer, ...]:
    return tuple(
        PeakBuffer(b.what, b.dtype, b.n_bytes, b.line) for b in peak_buffers(program, _MOST_BUFFERS)
    )


def _flops(
    program: Program, subject: Subject | None, axes: Mapping[str, int], trips: Trips | None
) -> tuple[LineFlops, ...]:
    executed: dict[SourceLine, float] = {}
    for line, flops in flops_by_line(program, trips).items():
        key = line._replace(function="")
        executed[key] = executed.get(key, 0.0) + flops
    needed = None if subject is None else needed_flops(subject.equations, axes)
    rows = (
        LineFlops(line, flops, needed.get(line) if needed is not None else None)
        for line, flops in executed.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.flops))


def needed_flops(
    equations: Sequence[Equation], axes: Mapping[str, int]
) -> dict[SourceLine, float]:  # fmt: skip
    """Return the FLOPs of products of whole arrays, divided by the devices, by source line.

    Inside `jax.shard_map` arrays are parts already: they are divided by the axes left to XLA alone.
    Lines in a loop that stops on data are left out: their trip count is not known.
    """
    manual = {e.path: manual_axes(e.eqn.params) for e in equations if e.name == "shard_map"}
    open_loops = {e.path for e in equations if e.name == "while"}
    found: dict[SourceLine, float] = {}
    unknown: set[SourceLine] = set()
    for e in equations:
        if not e.flops or e.line is None:
            continue
        line = e.line._replace(function="")
        above = [e.path[:n] for n in range(1, len(e.path))]
        if any(path in open_loops for path in above):
            unknown.add(line)
        inside = frozenset[str]().union(*(manual.get(path, frozenset()) for path in above))
        parts = 1
        for axis, size in axes.items():
            parts *= 1 if axis in inside else size
        found[line] = found.get(line, 0.0) + e.flops * e.times / parts
    return {line: flops for line, flops in found.items() if line not in unknown}


def _timeline(program: Program, trips: Trips | None) -> tuple[tuple[TimedOperation, ...], str]:
    """Schedule the busiest loop body or, where more time is outside of loops, the whole program."""
    module, entry = program.module, program.module.computation(program.module.entry)
    counts = {run.computation.name: run.times for run in executions(module, trips)}
    found = []
    for body in (entry, busiest_body(module, trips)):
        if body is None:
            continue
        events = timeline_of(body, module, program.ledger, program.cluster, trips)
        own = sum(
            e.stop_s - e.start_s for e in events
            if body.by_name[_instruction(e.name)].opcode != "while"
        )  # fmt: skip
        count = counts.get(body.name, 1)
        said = "the whole program" if body is entry else (
            f"one of {count:,.0f} iterations of the busiest loop"
        )  # fmt: skip
        found.append((own * count, events, said))
    _, events, said = max(found, key=lambda x: x[0])
    timed = (
        TimedOperation(e.name, e.lane, e.start_s, e.stop_s, _line(program, e.name)) for e in events
    )
    return tuple(timed), said


def _instruction(event: str) -> str:
    return event.removeprefix("GEMM ")


def _line(program: Program, event: str) -> SourceLine | None:
    return program.line(program.homes[_instruction(event)][1])
