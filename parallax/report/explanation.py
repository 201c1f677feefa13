"""Explanations as a table, a page, a notebook's output and plain data."""

from dataclasses import dataclass

from parallax.explain.explaining import Explained
from parallax.explain.findings import Finding


@dataclass(frozen=True)
class Explanation:
    """What was found about a program, and its renderings.

    Attributes:
      explained: the facts.
    """

    explained: Explained

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What costs time or memory and what would help, most lost first."""
        return self.explained.findings
