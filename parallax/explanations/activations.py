"""Changes of lines without a constraint: results moved, computed twice or kept whole."""

import math
from collections.abc import Iterator

from parallax.explanations.candidate import LEAST_TIME, Candidate, share_of
from parallax.explanations.constraints import CONSTRAINTS
from parallax.explanations.edits import Edit, inner_jaxprs
from parallax.explanations.source_lines import SourceLine
from parallax.explanations.specs import text
from parallax.explanations.subject import Subject
from parallax.hlo.collectives import Collective

# More FLOPs than this many times a device's share are computed on several devices.
_TWICE = 1.5
_FLOATS = ("float32", "bfloat16", "float16", "float64")


def activations(s: Subject) -> Iterator[Candidate]:
    """Lines whose results are moved, computed twice or kept whole, with no constraint there."""
    for line, share in _stakes(s).items():
        here = [e for e in s.at(line) if len(e.shape) > 1 and e.dtype in _FLOATS]
        if share < LEAST_TIME or not here or any(e.manual for e in here):
            continue
        largest = max(here, key=lambda e: math.prod(e.shape))
        taken = s.takers.get(id(largest.eqn.outvars[0]), [])
        if any(e.name in CONSTRAINTS for e in (*here, *taken)):
            continue  # the constraint is what to change
        alike = [e for e in here if e.shape == largest.shape]
        for spec in s.activation_specs(largest.shape):
            yield Candidate(
                "no constraint",
                "the partitioner moves the result, computes it twice or keeps it whole",
                f"constrain the result: jax.lax.with_sharding_constraint(..., {text(spec)})",
                line=line, share=share, edits=tuple(Edit(e.path, "constrain", spec) for e in alike),
                group="activations",
            )  # fmt: skip


def _stakes(s: Subject) -> dict[SourceLine, float]:
    """Return the share of time or memory at stake at each line."""
    stakes: dict[SourceLine, float] = {}

    def add(line: SourceLine | None, share: float) -> None:
        if line is not None:
            key = line._replace(function="")
            stakes[key] = stakes.get(key, 0.0) + share

    for c in s.program.ledger:
        if not s.program.is_written(c) and not _is_partial_sum(c):
            add(s.program.line_of(c), share_of(s, [c]))
    total = sum(s.flops.values())
    for line, count in s.flops.items():
        needed = sum(e.flops * e.times for e in s.at(line)) / s.devices
        if needed and count > _TWICE * needed:
            add(line, (count - needed) / total)
    for b in s.buffers:
        whole = max((math.prod(e.shape) for e in s.at(b.line)), default=0)
        if whole and b.elements * s.devices >= 2 * whole:
            add(b.line, b.n_bytes / max(1, s.program.memory_bytes))
    first = _first_activation(s)
    if stakes and first is not None:
        # Where a split is lost at the start, the lines after it are moved too.
        stakes[first._replace(function="")] = max(stakes.values())
    return stakes


def _first_activation(s: Subject) -> SourceLine | None:
    """Return the line of the first large value that is no argument, such as embedded tokens."""
    batch = math.prod(s.axes[a] for a in s.batch_axes)
    for e in s.equations:
        if any(e.holds) and e.name != "dot_general" and e.name != "gather":
            continue
        batched = e.dtype in _FLOATS and len(e.shape) > 1 and e.shape[0] % max(2, batch) == 0
        large = math.prod(e.shape) > 1 << 20 and not inner_jaxprs(e.eqn)
        if batched and large and e.line is not None:
            return e.line
    return None


def _is_partial_sum(c: Collective) -> bool:
    """Return whether a collective sums what a product split over its contracted dim leaves."""
    return c.kind in ("all-reduce", "reduce-scatter")
