"""Changes of loops: gathers that none of their iterations needs, caches that are stacked anew."""

import math
from collections.abc import Iterator

from parallax.explanations.candidate import LEAST_MEMORY, Candidate, share_of
from parallax.explanations.dataflow import operand_origins
from parallax.explanations.edits import Edit, scan_counts
from parallax.explanations.equations import Equation, stacked_caches
from parallax.explanations.source_lines import SourceLine
from parallax.explanations.specs import text, without
from parallax.explanations.subject import Subject


def invariant_gathers(s: Subject) -> Iterator[Candidate]:
    """Gathers inside a loop of what no iteration changes."""
    kept = sorted(s.flat.kept)
    for c in s.program.ledger:
        computation, i = s.program.homes[c.name]
        if c.kind != "all-gather" or c.count < 2 or s.program.is_written(c):
            continue
        for found in operand_origins(s.program.module, computation, i):
            if not found.invariant or found.parameter >= len(kept):
                continue
            argument = kept[found.parameter]
            for e in s.equations:
                if e.name != "scan" or len(e.path) > 1:
                    continue
                for position in range(scan_counts(e.eqn.params)[0]):
                    if e.holds[position] != {argument}:
                        continue
                    spec = without(s.flat.spec(argument) or (), c.axes or ())
                    name = s.flat.names[argument]
                    yield Candidate(
                        "gathered in a loop",
                        f"{name} is gathered in each of {c.count:,.0f} iterations, and none "
                        "changes it",
                        f"gather {name} once before the loop: constrain it to {text(spec)} there",
                        line=s.program.line_of(c) or _use(s, e, argument), share=share_of(s, [c]),
                        edits=(Edit(e.path, "constrain operand", spec, position),),
                        group=f"invariant {name}",
                    )  # fmt: skip


def _use(s: Subject, loop: Equation, argument: int) -> SourceLine | None:
    """Return the line of the first product in a loop that takes an argument."""
    for e in s.equations:
        inside = e.path[: len(loop.path)] == loop.path
        if inside and e.name == "dot_general" and any(argument in h for h in e.holds):
            return e.line
    return None


def copied_caches(s: Subject) -> Iterator[Candidate]:
    """Caches that a scan takes layer by layer and stacks anew."""
    for e in s.equations:
        pairs = stacked_caches(e.eqn) if e.name == "scan" and not e.manual else []
        size = sum(
            math.prod(v.aval.shape) * v.aval.dtype.itemsize / s.devices
            for v in (e.eqn.outvars[r] for _, r in pairs)
        )
        share = size / max(1, s.program.memory_bytes)
        if pairs and share >= LEAST_MEMORY:
            yield Candidate(
                "cache copied",
                "the scan takes the cache layer by layer and stacks a new one beside the old",
                "carry the whole cache through the scan and write each layer's part in place: "
                "cache.at[i].set(...)",
                line=e.line, share=share, edits=(Edit(e.path, "carry", pairs=tuple(pairs)),),
                group=f"cache {e.line}",
            )  # fmt: skip
