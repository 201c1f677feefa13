"""Explaining a program: reading it, trying changes, and sorting what was found."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from parallax.cost import Rates
from parallax.explanations.candidates import candidates
from parallax.explanations.compiled import Program, read_program
from parallax.explanations.findings import Finding
from parallax.explanations.flat_program import flat_program
from parallax.explanations.observations import (
    needed_collectives,
    rematerializations,
    sums_per_iteration,
)
from parallax.explanations.subject import Subject
from parallax.explanations.trying import improvements, try_candidates
from parallax.lenses.compiled_text import compile_text
from parallax.lenses.compiling import AMPLE_BYTES, LIBRARY_GEMMS
from parallax.lenses.user_function import UserProgram
from parallax.meshes.cluster import Cluster


@dataclass(frozen=True)
class Explained:
    """What was found about a program.

    Attributes:
      program: the program as it was compiled.
      findings: what costs and what would help, most lost first.
      needed: what is sent besides, and why.
      notes: what was not tried, and other caveats.
      subject: the program as it was traced; None for the text of a compiled module alone.
      untried: the number of changes that might help and were not compiled.
    """

    program: Program
    findings: tuple[Finding, ...]
    needed: tuple[Finding, ...]
    notes: tuple[str, ...]
    subject: Subject | None = None
    untried: int = 0


def explain_lowered(
    user: UserProgram,
    cluster: Cluster,
    rates: Rates,
    *,
    trips: Mapping[str, float] | None = None,
    options: Mapping[str, bool | int] | None = None,
    budget_s: float = 40.0,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Explained:
    """Explain a lowered program: compile it, then the changes that may help, one by one.

    Args:
      options: XLA options that a run of it needs.
    """
    flags = LIBRARY_GEMMS | dict(options or {})

    def compile_program(lowered: object) -> Program:
        compiled = compile_text(lowered, flags, cluster)
        memory = (
            compiled.argument_bytes + compiled.output_bytes + compiled.temp_bytes
            - compiled.alias_bytes
        )  # fmt: skip
        if memory > cluster.usable_fraction * cluster.gpu.memory_bytes:
            ample = compile_text(lowered, flags, cluster, AMPLE_BYTES)
            compiled = dataclasses.replace(compiled, text=ample.text)
        return read_program(
            compiled.text, user.axes, cluster, rates, memory, compiled.warnings, trips
        )

    on_progress(f"compiling for {cluster.name}")
    program = compile_program(user.lowered)
    subject = Subject(flat_program(user), program)
    changes = candidates(subject)
    tried, notes = try_candidates(subject, changes, compile_program, budget_s, on_progress)
    helping = improvements(subject, tried)
    found = [*helping, *sums_per_iteration(program)]
    found.sort(key=lambda f: -_lost(f, program))
    lines = {f.line and f.line._replace(function="") for f in found}
    warned = [
        f for f in rematerializations(program)
        if f.line is None or f.line._replace(function="") not in lines
    ]  # fmt: skip
    found += warned
    return Explained(
        program, tuple(found), tuple(needed_collectives(program, found)),
        (*user.notes, *notes), subject, len(changes) - len(tried),
    )  # fmt: skip


def _lost(finding: Finding, program: Program) -> float:
    if finding.saving is None:
        return 0.0
    return max(
        finding.saving.seconds / program.seconds,
        finding.saving.memory_bytes / max(1, program.memory_bytes),
    )
