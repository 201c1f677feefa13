"""Trying changes: each is compiled, and its saving is what the compiled program says."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from parallax.explanations.candidates import Candidate
from parallax.explanations.compiled import Program
from parallax.explanations.findings import Finding, Saving
from parallax.explanations.flat_program import FlatProgram, lower_flat, with_specs
from parallax.explanations.subject import Subject

# A change is reported if it saves this share of the time or memory, and costs no more of the other
# than that.
LEAST_SAVING, MOST_COST = 0.03, 0.01
_NEARLY = 0.9

Compile = Callable[[object], Program]


@dataclass(frozen=True)
class TryBudget:
    """How many changes may be compiled, and how many seconds an explanation may take."""

    tries: int = 12
    seconds: float = 55.0

    def __str__(self) -> str:
        return f"{self.tries} tries or {self.seconds:.0f} s"


@dataclass(frozen=True)
class Tried:
    """A candidate with the program it gives."""

    candidate: Candidate
    program: Program

    def saving(self, before: Program) -> Saving:
        """Return what the change saves."""
        return Saving(
            before.seconds - self.program.seconds,
            before.sent_bytes - self.program.sent_bytes,
            before.memory_bytes - self.program.memory_bytes,
            "compiled",
        )

    def gain(self, before: Program) -> float:
        """Return the share of time and memory saved; 0 where it costs too much of either."""
        saving = self.saving(before)
        time_share = saving.seconds / before.seconds
        memory_share = saving.memory_bytes / before.memory_bytes if before.memory_bytes else 0.0
        if (
            max(time_share, memory_share) < LEAST_SAVING
            or min(time_share, memory_share) < -MOST_COST
        ):
            return 0.0
        return time_share + memory_share


def changed(flat: FlatProgram, candidate: Candidate) -> object:
    """Return the lowered program with a candidate's changes."""
    made = with_specs(flat, dict(candidate.specs), dict(candidate.results))
    donated = tuple(d or i in candidate.donated for i, d in enumerate(made.donated))
    return lower_flat(dataclasses.replace(made, donated=donated), candidate.edits)


def try_candidates(
    subject: Subject,
    candidates: Iterable[Candidate],
    compile_program: Compile,
    budget: TryBudget,
    start: float,
    on_progress: Callable[[str], None],
) -> tuple[list[Tried], list[str]]:
    """Compile candidates one by one until the budget is used up.

    No try starts that, taking as long as the last compilation, would end after the budget's
    seconds; they count from `start`, when the program's own compilation began.

    Returns:
      What could be compiled; and notes of what was not tried.
    """
    tried, notes = [], []
    began = start
    waiting = list(candidates)
    for position, candidate in enumerate(waiting):
        now = time.perf_counter()
        last, began = now - began, now
        if position >= budget.tries or now - start + last > budget.seconds:
            notes.append(
                f"{len(waiting) - position} further changes were not tried: {budget} were used up"
            )
            break
        on_progress(f"trying: {candidate.fix}")
        try:
            with warnings.catch_warnings():  # they would be of a program that nobody wrote
                warnings.simplefilter("ignore")
                program = compile_program(changed(subject.flat, candidate))
            tried.append(Tried(candidate, program))
        except Exception as error:  # JAX or XLA refuse a change in many ways; the others go on
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            notes.append(f"not tried: {candidate.fix}: {first[:160]}")
    return tried, notes


def improvements(subject: Subject, tried: list[Tried]) -> list[Finding]:
    """Return a finding for each change that helps, the best of each group, largest gain first."""
    before = subject.program
    groups: dict[str, list[tuple[float, Tried]]] = {}
    for one in tried:
        gain = one.gain(before)
        if gain > 0:
            groups.setdefault(one.candidate.group, []).append((gain, one))
    best = []
    for members in groups.values():
        most = max(gain for gain, _ in members)
        # What helps nearly as much and comes earlier in the program is the cause.
        best.append(min(
            (x for x in members if x[0] > _NEARLY * most), key=lambda x: _position(subject, x[1])
        ))  # fmt: skip
    ordered = sorted(best, key=lambda x: -x[0])
    return [_finding(one, before) for _, one in ordered]


def _position(subject: Subject, tried: Tried) -> tuple:
    first = min((e.path[0] for e in tried.candidate.edits), default=0)
    return first, -tried.gain(subject.program)


def _finding(one: Tried, before: Program) -> Finding:
    c = one.candidate
    return Finding(
        c.kind, c.what, c.fix, line=c.line, argument=c.argument, saving=one.saving(before)
    )
