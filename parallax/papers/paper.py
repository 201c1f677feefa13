"""What a paper says, as data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.papers.numbers import last_digit_of, value_of
from parallax.workload import Workload

Reading = Literal["tps", "inv_tps", "inv_tps_us_printed_ms", "sync_overhead_per_token", "other"]
Relation = Literal["equals", "at most", "at least"]
Verdict = Literal[
    "consistent",
    "rounding",
    "arithmetic error",
    "beyond the physical bound",
    "contradicts another claim",
    "modelled, off by",
    "not derivable from the text",
]


@dataclass(frozen=True)
class Given:
    """What a derivation may use.

    Attributes:
      paper, claim: whose figure is derived.
      cluster: the machine it is held against.
    """

    paper: "Paper"
    claim: "Claim"
    cluster: Cluster

    @property
    def config(self) -> ModelConfig:
        return self.paper.config

    @property
    def workload(self) -> Workload:
        return self.paper.workload

    def claimed(self, quantity: str, strategy: str | None = None) -> float:
        """Another figure of this paper: of the claim's strategy, or of the one named."""
        who = self.claim.strategy if strategy is None else strategy
        return self.paper.claim(who, quantity).value


Derivation = Callable[[Given], float]


@dataclass(frozen=True)
class Claim:
    """One figure a paper prints.

    Attributes:
      strategy: the STRATEGIES name it is about, or a method this release does not have yet; ""
        where it is about the model or the machine.
      quantity: e.g. "TPS", "TPOT"; with `strategy` it names the claim within its paper.
      printed: the number as printed, without its unit: "12,800", "1.20M".
      unit: that the number means; MiB and GiB where MB and GB are printed for powers of two.
      reading: what the figure can mean (papers use TPOT for different things).
      lines: of the paper's text, all that print it.
      reason: what the verdict rests on, in one line.
      derive: computes the figure, in `unit`; None where the text gives nothing to derive it from.
        A TPS is held against physical bounds instead, and `derive` is what another paper implies.
      relation: how the claim must stand to what is derived.
      otherwise: the verdict where it does not.
    """

    strategy: str
    quantity: str
    printed: str
    unit: str
    reading: Reading
    lines: tuple[int, ...]
    reason: str
    derive: Derivation | None = None
    relation: Relation = "equals"
    otherwise: Verdict = "contradicts another claim"

    @property
    def value(self) -> float:
        return value_of(self.printed)

    @property
    def last_digit(self) -> float:
        """What one unit of the last printed digit is worth."""
        return last_digit_of(self.printed)


@dataclass(frozen=True)
class Setup:
    """A line whose digits are part of the configuration, of a name or of a heading.

    Attributes:
      line: of the paper's text.
      what: in our words.
      value: the number it gives, which has to be on the line; None where it is part of a name.
    """

    line: int
    what: str
    value: float | None = None


@dataclass(frozen=True)
class Assumption:
    """What the paper leaves out and we chose, with the reason."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Validation:
    """A point the paper itself says must hold.

    Attributes:
      statement: in our words.
      check: which figures decide it, as "name" or "name:argument" (see report/validation.py).
    """

    statement: str
    check: str


@dataclass(frozen=True)
class Paper:
    """One paper's experiment.

    Attributes:
      name: short name, as flags take it.
      title: one line.
      config: the model at full size.
      workload: batch, length and microbatches.
      strategies: STRATEGIES names compared, the baseline first.
      cluster: the cluster we take it to mean.
      claims, setup, assumptions, validations: see there.
      small_workload: what the verify lens runs beside config.small().
      proposed: STRATEGIES name of the paper's own system, whether this release has it or not.
      compression: formats in which its method stores attention's and the MLP's matrices; they
        change the function, so a run has to ask for them (--compression).
    """

    name: str
    title: str
    config: ModelConfig
    workload: Workload
    strategies: tuple[str, ...]
    cluster: str
    claims: tuple[Claim, ...]
    assumptions: tuple[Assumption, ...]
    validations: tuple[Validation, ...]
    small_workload: Workload
    proposed: str
    compression: tuple[str, str] | None = None
    setup: tuple[Setup, ...] = ()

    def is_of_size(self, config: ModelConfig, workload: Workload) -> bool:
        """Whether a run of this model and workload compares with the paper's figures."""
        sizes = (workload.batch, workload.seq_len)
        return config == self.config and sizes == (self.workload.batch, self.workload.seq_len)

    def claim(self, strategy: str, quantity: str) -> Claim:
        """The claim of that name.

        Raises:
          KeyError: the paper prints no such figure.
        """
        for claim in self.claims:
            if (claim.strategy, claim.quantity) == (strategy, quantity):
                return claim
        raise KeyError(f"{self.name}: no claim {quantity!r} of {strategy!r}")
