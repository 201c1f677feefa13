"""The data that a report shows, apart from how it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallax.models.config import ModelConfig
from parallax.papers.paper import Paper
from parallax.papers.results import Findings
from parallax.report.answer import answer_comparison, answer_sweep
from parallax.report.recorded import Section
from parallax.results.lens_results import StrategyResult
from parallax.results.sweep_results import Sweep
from parallax.workload import Workload


@dataclass(frozen=True)
class Comparison:
    """The results of strategies compared through the lenses.

    Attributes:
      config, workload: what is compiled and predicted; each compilation has its own microbatches.
      cluster: the name of the cluster compiled for.
      lenses: the lenses asked for.
      request: the resolved flags that reproduce the run.
      results: one per strategy, in the order asked for.
      versions: package versions, e.g. {"jax": "0.12.0"}.
      seconds: wall-clock time of the whole run.
      paper: the paper whose experiment it is; None for a free comparison.
      sweep: the points along an axis; None without a sweep.
      findings: what was derived beside the run, see `parallax.papers.findings`.
      recorded: what the records of long runs say about the paper, see `parallax.report.recorded`.
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
    def answer(self) -> str:
        """What to take, by how much, what is in doubt and what would change it, in words."""
        if self.sweep is not None:
            return answer_sweep(self.sweep)
        return answer_comparison(self.results)

    @property
    def failed(self) -> bool:
        """Whether a strategy cannot run, is not exact, does not fit, or misses its closed form.

        Of a sweep's points, only bytes that differ from the closed form count.
        """
        swept = self.sweep is not None and bool(self.sweep.failures)
        return swept or any(result.failed for result in self.results)

    @property
    def exit_status(self) -> int:
        """The exit status: 1 if `failed`, else 0. A paper's validation points do not count."""
        return int(self.failed)
