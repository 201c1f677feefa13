"""What a program's text alone says: sums in loops, needed collectives, warnings of XLA."""

from collections.abc import Iterable

from parallax.explanations.compiled import Program
from parallax.explanations.dataflow import accumulating_loop, callers, operand_origins
from parallax.explanations.findings import Finding, Saving
from parallax.explanations.partitioner_warnings import warned_splits
from parallax.explanations.source_lines import SourceLine, users_line
from parallax.hlo.collectives import Collective
from parallax.hlo.flops import executions
from parallax.hlo.module import Instruction

LEAST_SHARE = 0.005


def sums_per_iteration(program: Program) -> list[Finding]:
    """Find sums over devices in a loop that only adds them up: one after the loop is enough."""
    times = {run.computation.name: run.times for run in executions(program.module)}
    groups: dict[tuple[SourceLine | None, float], list[Collective]] = {}
    for c in program.ledger:
        if c.kind not in ("all-reduce", "reduce-scatter") or c.count < 2:
            continue
        body = accumulating_loop(program.module, program.homes[c.name][0], c)
        if body is not None:
            outer, loop = callers(program.module)[body.name]
            count = times.get(body.name, 0.0) / max(1.0, times.get(outer.name, 1.0))
            groups.setdefault((_inside(program, c, loop), count), []).append(c)
    found = []
    for (line, count), members in groups.items():
        share = 1 - 1 / max(1.0, count)
        seconds = (program.seconds - program.without({c.name for c in members})) * share
        sent = sum(c.total_bytes for c in members) * share
        if seconds < LEAST_SHARE * program.seconds:
            continue
        found.append(
            Finding(
                "sum in each iteration",
                f"gradients are summed over devices in each of {count:,.0f} iterations, and the "
                "loop only adds the sums up",
                "add up each device's own gradients (in jax.shard_map, weights cast to varying) "
                "and sum over devices once, after the loop",
                line=line,
                saving=Saving(seconds, sent, 0.0, "modelled"),
                **_totals(program, members),
            )
        )
    return found


def _inside(program: Program, c: Collective, loop: Instruction) -> SourceLine | None:
    """Return the line of the loop's body that leads to a collective."""
    own = program.module.frames(program.homes[c.name][1])
    around = {(f.file, f.line) for f in program.module.frames(loop)[:1]}
    for position, frame in enumerate(own):
        if (frame.file, frame.line) in around and position:
            return users_line(own[position - 1 :: -1][:1]) or program.line_of(c)
    return program.line_of(c)


def needed_collectives(program: Program, explained: Iterable[Finding]) -> list[Finding]:
    """Return what is sent and no finding is about, by line: written by the user, or needed."""
    taken = {f.line._replace(function="") for f in explained if f.line is not None}
    groups: dict[tuple, list[Collective]] = {}
    for c in program.ledger:
        line = program.line_of(c)
        if line is not None and line._replace(function="") in taken:
            continue
        groups.setdefault((line, c.kind, c.axes, _why(program, c)), []).append(c)
    rows = [
        Finding(
            kind, _what(members), needed=why, line=line, **_totals(program, members)
        )
        for (line, kind, _, why), members in groups.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda f: -f.seconds)


def _why(program: Program, c: Collective) -> str:
    if program.is_written(c):
        return "written in the program"
    computation, i = program.homes[c.name]
    if c.kind == "all-gather" and operand_origins(program.module, computation, i):
        return "a sharded argument is gathered for its product: (n - 1)/n of its bytes arrive"
    if c.kind in ("all-reduce", "reduce-scatter"):
        factor = "2 (n - 1)/n" if c.kind == "all-reduce" else "(n - 1)/n"
        return f"partial results of the devices are summed: {factor} of their bytes leave a device"
    return "the partitioner moves an array from one split to another"


def _what(members: list[Collective]) -> str:
    c = members[0]
    over = ", ".join(c.axes) if c.axes else f"groups of {c.group_size}"
    return f"{c.kind} over {over}"


def _totals(program: Program, members: list[Collective]) -> dict:
    seconds = sum(program.collective_s(c) for c in members)
    exposed = program.seconds - program.without({c.name for c in members})
    return {
        "sent_bytes": sum(c.total_bytes for c in members),
        "count": sum(c.count for c in members),
        "seconds": seconds,
        "exposed_s": max(0.0, min(seconds, exposed)),
        "axes": members[0].axes or (),
    }


def rematerializations(program: Program) -> list[Finding]:
    """Return a finding for each "involuntary full rematerialization" that XLA warned of."""
    found = []
    for before, after, line in warned_splits(program):
        what = (
            f"the partitioner cannot go from {_text(before)} to {_text(after)} and makes the array "
            "whole on every device on the way (XLA: involuntary full rematerialization)"
        )
        fix = (
            "constrain the value where it is made to the split it is used in, or go there in two "
            "steps, one mesh axis at a time"
        )
        found.append(Finding("full rematerialization", what, fix, line=line))
    return list(dict.fromkeys(found))


def _text(split: tuple[tuple[str, ...], ...]) -> str:
    return f"P({', '.join('None' if not a else repr(a[0] if len(a) == 1 else a) for a in split)})"
