"""The findings of an explanation: what costs, where, how much, and what would help."""

from dataclasses import dataclass, field
from typing import Literal

from parallax.explanations.source_lines import SourceLine


@dataclass(frozen=True)
class Saving:
    """What a change saves per run and device.

    Attributes:
      seconds, sent_bytes, memory_bytes: less than before; negative where it costs.
      tag: "compiled" where the changed program was compiled (its seconds are modelled), "modelled"
        where only the estimate was repeated without the cost.
    """

    seconds: float
    sent_bytes: float
    memory_bytes: float
    tag: Literal["compiled", "modelled"]


@dataclass(frozen=True)
class Finding:
    """One thing that costs time or memory.

    Attributes:
      kind: what it is, in two or three words.
      what: what the compiler did, in a sentence.
      fix: what to write, in a sentence; "" where nothing is to be done.
      line: the user's line; None where an argument is at fault.
      argument: the argument, by the user's name; "" where a line is.
      saving: what the fix saves; None where it was not tried, and for what is needed.
      needed: why it is needed, with its closed form; "" for what is not.
      sent_bytes, count, seconds, exposed_s: of its collectives, per run and device; the seconds are
        modelled, and exposed where no kernel hides them.
      memory_bytes: memory per device that it keeps.
      axes: mesh axes that it is over.
    """

    kind: str
    what: str
    fix: str = ""
    line: SourceLine | None = None
    argument: str = ""
    saving: Saving | None = None
    needed: str = ""
    sent_bytes: float = 0.0
    count: float = 0.0
    seconds: float = 0.0
    exposed_s: float = 0.0
    memory_bytes: float = 0.0
    axes: tuple[str, ...] = field(default=())

    @property
    def where(self) -> str:
        """The line or the argument, in words."""
        return str(self.line) if self.line is not None else self.argument
