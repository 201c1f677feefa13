"""Explaining a program: reading it, trying changes, and sorting what was found."""

import dataclasses
import time
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
from parallax.explanations.trying import TryBudget, improvements, try_candidates
from parallax.hlo.branches import Trips
from parallax.lenses.compiled_text import compile_text
from parallax.lenses.compiler_log import logs_warnings
from parallax.lenses.compiling import AMPLE_BYTES, compile_options
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
    budget: TryBudget,
    *,
    trips: Trips | None = None,
    options: Mapping[str, bool | int | str] | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Explained:
    """Explain a lowered program: compile it, then the changes that may help, one by one.

    Args:
      options: XLA options that a run of it needs.
    """
    flags = compile_options(options or {})

    limit, said = None, user.notes

    def compile_program(lowered: object) -> Program:
        compiled = compile_text(lowered, flags, cluster, limit)
        return read_program(
            compiled.text, user.axes, cluster, rates, compiled.total_bytes, compiled.warnings, trips
        )

    start = time.perf_counter()
    on_progress(f"compiling for {cluster.name}")
    program = compile_program(user.lowered)
    usable = cluster.usable_fraction * cluster.gpu.memory_bytes
    if program.memory_bytes > usable:
        # XLA computes again what it cannot keep: all programs are compared without that.
        limit = AMPLE_BYTES
        said = (
            *said,
            f"does not fit: {program.memory_bytes / 1e9:.1f} GB of {usable / 1e9:.1f} usable; all "
            "figures are of compilations with ample memory",
        )
        on_progress("does not fit: compiling with ample memory")
        program = compile_program(user.lowered)
    subject = Subject(flat_program(user), program)
    if not logs_warnings():
        said = (*said, "XLA's warnings are off in this process: TF_CPP_MIN_LOG_LEVEL is above 1")
    worth_a_try = candidates(subject)
    tried, notes = try_candidates(subject, worth_a_try, compile_program, budget, start, on_progress)
    helping = improvements(subject, tried)
    found = [*helping, *sums_per_iteration(program)]
    found.sort(key=lambda f: -_lost(f, program))
    mended = {_warning(f) for f in found}
    found += [f for f in rematerializations(program) if _warning(f) not in mended]
    return Explained(
        program, tuple(found), tuple(needed_collectives(program, found)),
        (*said, *notes), subject, len(worth_a_try) - len(tried),
    )  # fmt: skip


def _warning(finding: Finding) -> Finding:
    """Return a finding without where it is and what helps, as two of the same warning share it."""
    return dataclasses.replace(finding, line=None, fix="", saving=None)


def _lost(finding: Finding, program: Program) -> float:
    if finding.saving is None:
        return 0.0
    return max(
        finding.saving.seconds / program.seconds,
        finding.saving.memory_bytes / max(1, program.memory_bytes),
    )
