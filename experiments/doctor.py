"""Say what is installed here, and which of the four lenses work with it.

  parallax doctor

Hardware: any.
Result: versions, GPUs and one line per lens with what it lacks, as text that fits into an issue:
folders are left out.
Exit status: 0 all lenses work; 1 one does not, and its line says what to install; 2 bad input.
"""

from dataclasses import dataclass

from parallax.experiments.flags import Command
from parallax.lenses.installation import installation


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command: it has none."""


def main(flags: Flags) -> int:
    """Print what is installed and what works."""
    del flags
    facts, all_work = installation()
    for what, value in facts:
        print(f"{what:<22}{value}")
    return 0 if all_work else 1
