"""Report: what a comparison found, with everything needed to run it again."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parallax.models.config import ModelConfig
from parallax.papers.paper import Paper
from parallax.report.rows import sentences
from parallax.report.validation import Decision, decide
from parallax.results import StrategyResult
from parallax.workload import Workload


@dataclass(frozen=True)
class Report:
    """Results of one comparison.

    Attributes:
      config: the model that was compiled.
      workload: batch and length at full size; each compilation has its own microbatches.
      cluster: what it was compiled for.
      lenses: that were asked for.
      results: one a strategy, in the order asked.
      request: the resolved arguments, which run it again.
      versions: of Python, JAX and the other packages that decide the numbers.
      seconds: the comparison took.
      paper: whose experiment it is, or None.
    """

    config: ModelConfig
    workload: Workload
    cluster: str
    lenses: tuple[str, ...]
    results: tuple[StrategyResult, ...]
    request: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    paper: Paper | None = None

    @property
    def failed(self) -> bool:
        """Something is not exact, does not fit, or moves other bytes than its closed form."""
        return any(r.failed for r in self.results)

    @property
    def exit_status(self) -> int:
        """0 ok; 1 failed. The paper's validation points never change it."""
        return int(self.failed)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """The paper's validation points with their verdicts."""
        return () if self.paper is None else decide(self.paper, self.results)

    @property
    def sentences(self) -> list[str]:
        """What follows from the figures, in plain words."""
        return sentences(self.results, self.paper)

    @property
    def title(self) -> str:
        return self.paper.title if self.paper else f"{self.config.name}: strategies compared"

    @property
    def subtitle(self) -> str:
        c, w = self.config, self.workload
        return (
            f"{c.num_layers} layers, {c.d_model} wide, {c.num_heads} heads of {c.head_dim}, "
            f"{c.num_params / 1e9:.3g} G parameters, {'causal' if c.causal else 'full'} attention, "
            f"{c.dtype}; {w.batch} x {w.seq_len} tokens on {self.cluster}"
        )

    def table(self):
        """A rich renderable, made for 100 columns."""
        from parallax.report.table import render

        return render(self)

    def to_json(self) -> str:
        """The report as JSON; schema in docs/report_schema.md."""
        from parallax.report.serialize import to_json

        return to_json(self)

    def html(self) -> str:
        """One self-contained page."""
        from parallax.report.html import page

        return page(self)

    def _repr_html_(self) -> str:
        from parallax.report.html import fragment

        return fragment(self)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Writes report.json and report.html into a folder, both or neither.

        Raises:
          ValueError: the folder cannot be written.
        """
        from parallax.report.files import write_all

        return write_all(folder, {"report.json": self.to_json(), "report.html": self.html()})
