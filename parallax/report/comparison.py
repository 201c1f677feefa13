"""Comparison: what a report shows, without knowing how it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallax.models.config import ModelConfig
from parallax.papers.paper import Paper
from parallax.papers.results import Findings
from parallax.report.recorded import Section
from parallax.results.lens_results import StrategyResult
from parallax.results.sweep_results import Sweep
from parallax.workload import Workload


@dataclass(frozen=True)
class Comparison:
    """Strategies compared through the lenses.

    Attributes:
      config, workload: compiled and predicted; each compilation has its own microbatches.
      cluster: name of the cluster compiled for.
      lenses: that were asked for.
      request: the resolved flags that run it again.
      results: one a strategy, in the order asked for.
      versions: of what took part, e.g. {"jax": "0.12.0"}.
      seconds: the whole run took.
      paper: whose experiment it is; None for a free comparison.
      sweep: the points along an axis; None for one comparison.
      findings: what was worked out beside the run, see `parallax.papers.findings`.
      recorded: what records of long runs say about the paper, see `parallax.report.recorded`.
    """

    config: ModelConfig
    workload: Workload
    cluster: str
    lenses: tuple[str, ...]
    request: Mapping[str, Any]
    results: tuple[StrategyResult, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    paper: Paper | None = None
    sweep: Sweep | None = None
    findings: Findings = field(default_factory=Findings)
    recorded: tuple[Section, ...] = ()

    @property
    def failed(self) -> bool:
        """A strategy cannot run, is not exact, does not fit, or moves other bytes than its closed
        form.

        At a point of a sweep, only other bytes count.
        """
        swept = self.sweep is not None and bool(self.sweep.failures)
        return swept or any(result.failed for result in self.results)

    @property
    def exit_status(self) -> int:
        """0, or 1 if `failed`. The paper's own validation points do not count."""
        return int(self.failed)
