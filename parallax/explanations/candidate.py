"""A change that may help, before it is tried."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from jax.sharding import PartitionSpec

from parallax.explanations.edits import Edit
from parallax.explanations.source_lines import SourceLine
from parallax.explanations.subject import Subject, root_of
from parallax.hlo.collectives import Collective

# Shares of a program's time and memory below which nothing is tried.
LEAST_TIME, LEAST_MEMORY = 0.02, 0.02


@dataclass(frozen=True)
class Candidate:
    """A change that may make a program faster or smaller.

    Attributes:
      kind: what is wrong, in two or three words.
      what: what the compiler did, in a sentence.
      fix: what to write, in a sentence.
      line: the user's line at fault; None where an argument is.
      argument: the argument at fault, by the user's name; "" where a line is.
      share: the part of the program's time or memory at stake, for the order of trying.
      edits: changes of equations.
      specs, results: other specs of arguments and results, by position.
      donated: positions of arguments to donate.
      group: of candidates with the same group the best alone is reported.
    """

    kind: str
    what: str
    fix: str
    line: SourceLine | None = None
    argument: str = ""
    share: float = 0.0
    edits: tuple[Edit, ...] = ()
    specs: Mapping[int, PartitionSpec] = field(default_factory=dict)
    results: Mapping[int, PartitionSpec] = field(default_factory=dict)
    donated: tuple[int, ...] = ()
    group: str = ""


def share_of(s: Subject, collectives: Iterable[Collective]) -> float:
    return sum(s.program.collective_s(c) for c in collectives) / s.program.seconds


def root(s: Subject, i: int) -> str:
    """Return the name of the whole argument that a leaf is of, such as "params"."""
    return root_of(s.flat.names[i])


def roots(s: Subject, found: list[int]) -> str:
    return ", ".join(dict.fromkeys(root(s, i) for i in found))
