"""The cells and rows that a comparison's table is made of."""

from dataclasses import dataclass
from typing import Literal

from parallax.results.lens_results import Tag

Status = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Cell:
    """The text of one fact for one strategy, with its status."""

    text: str
    status: Status = "plain"


@dataclass(frozen=True)
class Row:
    """One fact, for all strategies.

    Attributes:
      question: the group it belongs to.
      label: the fact.
      tag: where its numbers come from.
      cells: one per strategy; None where it has none.
    """

    question: str
    label: str
    tag: Tag
    cells: tuple[Cell | None, ...]


def yes_or_no(holds: bool, no: str = "no") -> Cell:
    """Return a good "yes", or a bad `no`."""
    return Cell("yes", "good") if holds else Cell(no, "bad")
