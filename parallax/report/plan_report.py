"""What the reports of all plans share: files, text for a terminal, output in a notebook."""

import io
import itertools
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from rich.console import Console, RenderableType

from parallax.report.files import save_files
from parallax.report.templates import render, render_page
from parallax.results.lens_results import Figure


def timed_by(candidate: Any) -> str:
    """Return what times a candidate in its row, and orders it, in words."""
    return "compiled programs" if candidate.compiled else "the analytical model"


def in_groups[C](ranked: Sequence[C]) -> Iterator[tuple[str, list[tuple[int, C]]]]:
    """Yield candidates in their order, grouped by what times them, each with its place.

    Within a group all times are of one kind; times of two kinds are not compared.
    """
    for kind, group in itertools.groupby(enumerate(ranked, 1), lambda pair: timed_by(pair[1])):
        yield f"by {kind}:", list(group)


def per_token(rate: Figure) -> Figure:
    """Return the time per token of a throughput, with its error bar."""
    low, high = (None if x is None else 1 / x for x in (rate.high, rate.low))
    return Figure(1 / rate.value, "s", rate.tag, low, high)


def exposed_part(terms_s: Mapping[str, float], cost: Figure) -> float:
    """Return the part of a time that is communication which nothing hides."""
    return cost.value * terms_s.get("exposed communication", 0.0) / sum(terms_s.values())


def refuse_all(nearest: Any) -> str:
    """Return the answer where nothing can be taken: why not even the nearest."""
    name = f"{nearest.strategy.name} on {nearest.strategy.mesh}"
    return f"Take none. The nearest, {name}, {nearest.why}."


class PlanReport(Protocol):
    """The results of a search, to print, show and save.

    Attributes:
      columns: width of the text.
    """

    columns: ClassVar[int] = 100

    @property
    @abstractmethod
    def winner(self) -> Any:
        """The best candidate that fits; None if there is none."""
        ...

    @property
    @abstractmethod
    def answer(self) -> str:
        """What to take, by how much, what is in doubt and what would change it, in words."""
        ...

    @abstractmethod
    def table(self) -> RenderableType:
        """Render the candidates for a rich console."""
        ...

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain data; every number has its unit and tag."""
        ...

    @abstractmethod
    def shown(self) -> dict[str, Any]:
        """Return the values that search.html.j2 shows."""
        ...

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        return render_page("search.html.j2", **self.shown())

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write plan.json, plan.html and, if anything fits, the winner as strategy.json."""
        files = {"plan.json": json.dumps(self.to_dict(), indent=1) + "\n",
                 "plan.html": self.to_html()}  # fmt: skip
        if self.winner is not None:
            data = self.winner.strategy.to_dict()
            files["strategy.json"] = json.dumps(data, indent=2) + "\n"
        return save_files(folder, files)

    def __str__(self) -> str:
        console = Console(width=self.columns, file=io.StringIO())
        with console.capture() as text:
            console.print(self.table())
        return text.get()

    def _repr_html_(self) -> str:
        return render("search.html.j2", **self.shown())
