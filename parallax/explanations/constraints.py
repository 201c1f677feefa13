"""Changes of the constraints that a user wrote: dropped, written another way, in two steps."""

import math
from collections.abc import Iterator
from typing import Any

from jax.sharding import PartitionSpec

from parallax.explanations.candidate import LEAST_TIME, Candidate, share_of
from parallax.explanations.edits import Edit, open_jaxpr
from parallax.explanations.equations import Equation
from parallax.explanations.partitioner_warnings import warned_splits
from parallax.explanations.source_lines import SourceLine
from parallax.explanations.specs import Split, axes_of, divides, entries, padded, swapped, text
from parallax.explanations.subject import Subject
from parallax.hlo.collectives import Collective

CONSTRAINTS = ("sharding_constraint", "reshard")


def costly_constraints(s: Subject) -> Iterator[Candidate]:
    """Constraints of the user's that cost more than they help: dropped, or split another way."""
    seen = set()
    results = {id(v) for v in open_jaxpr(s.flat.jaxpr)[0].outvars}
    for e in s.equations:
        spec = _spec(e)
        if any(id(v) in results for v in e.eqn.outvars):
            continue  # the split that a result is asked for
        if spec is None or e.manual or e.line is None or (e.line[:2], e.shape) in seen:
            continue
        seen.add((e.line[:2], e.shape))
        share = max(share_of(s, _sent_around(s, e)), _memory_share(s, e))
        if share < LEAST_TIME:
            continue
        twins = [x for x in s.at(e.line) if x.name == e.name and x.shape == e.shape]
        written, shape = text(spec), e.shape
        others = [*s.activation_specs(shape), None, *swapped(spec, shape, s.axes)]
        for other in others:
            if other is not None and padded(other, len(shape)) == padded(spec, len(shape)):
                continue
            yield Candidate(
                "costly constraint",
                f"{written} makes the partitioner move the array or keep it whole",
                f"leave the constraint {written} away" if other is None
                else f"write {text(other)} instead of {written}",
                line=e.line, share=share,
                edits=tuple(Edit(x.path, "drop", other) for x in twins), group=f"line {e.line}",
            )  # fmt: skip


def _spec(e: Equation) -> PartitionSpec | None:
    """Return the split that a constraint asks for; None for other equations."""
    if e.name not in CONSTRAINTS:
        return None
    sharding = e.eqn.params.get("sharding") or e.eqn.params.get("dst_sharding")
    return getattr(sharding, "spec", None)


def two_steps(s: Subject) -> Iterator[Candidate]:
    """Ways around a full rematerialization: one more split between the two."""
    for before, after, line in warned_splits(s.program):
        for e in s.equations:
            spec = _spec(e)
            if spec is None:
                continue
            if axes_of(padded(spec, len(e.shape))) != after or not _follows(s, e, line):
                continue
            for between in _between(before, after):
                if not divides(list(between), e.shape, s.axes):
                    continue
                middle = PartitionSpec(*between)
                yield Candidate(
                    "full rematerialization",
                    f"the partitioner cannot go from {text(entries(before))} to "
                    f"{text(entries(after))} and makes the array whole on every device on the way "
                    "(XLA: involuntary full rematerialization)",
                    f"go there in two steps: constrain to {text(middle)} before {text(spec)}",
                    line=e.line, share=0.5,
                    edits=(Edit(e.path, "constrain operand", middle, 0),),
                    group=f"remat {e.line}",
                )  # fmt: skip


def _follows(s: Subject, e: Equation, line: SourceLine | None) -> bool:
    """Return whether a constraint takes what a line makes, or is on that line."""
    if line is None or (e.line is not None and e.line[:2] == line[:2]):
        return True
    return any(m.line is not None and m.line[:2] == line[:2] for m in s.made_by(e))


def _between(before: Split, after: Split) -> list[tuple[Any, ...]]:
    """Return splits on the way: all axes where some are wanted, or one axis moved at a time."""
    found: list[Split] = []
    for dim, axes in enumerate(after):
        if axes:
            lost = tuple(a for part in before for a in part if not any(a in x for x in after))
            more = list(after)
            more[dim] = (*axes, *lost)
            found.append(tuple(more))
    for dim, axes in enumerate(before):
        for axis in axes:
            target = next((d for d, part in enumerate(after) if axis in part), None)
            if target is not None and target != dim:
                moved = [tuple(a for a in part if a != axis) for part in before]
                moved[target] = (*moved[target], axis)
                found.append(tuple(moved))
    return [entries(x) for x in dict.fromkeys(found) if x not in (before, after)]


def _sent_around(s: Subject, e: Equation) -> list[Collective]:
    """Return the collectives of a line, and of the lines that make and take its values."""
    taken = [x for v in e.eqn.outvars for x in s.takers.get(id(v), ())]
    lines = {x.line and x.line._replace(function="") for x in (e, *s.made_by(e), *taken)}
    return [
        c for c in s.program.ledger
        if not s.program.is_written(c)
        and (line := s.program.line_of(c)) is not None
        and line._replace(function="") in lines
    ]  # fmt: skip


def _memory_share(s: Subject, e: Equation) -> float:
    """Return the share of memory of arrays as large as a constraint's that are not fully split."""
    whole = math.prod(e.shape)
    held = (b for b in s.buffers if b.elements and whole % b.elements == 0)
    kept = sum(b.n_bytes for b in held if whole // b.elements < s.devices)
    return kept / max(1, s.program.memory_bytes)
