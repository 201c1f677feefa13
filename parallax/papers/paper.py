"""A paper as data: its experiment, claims, setup, assumptions and validations."""

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
    """The input of a derivation.

    Attributes:
      paper, claim: the claim whose figure is derived, and its paper.
      cluster: the machine it is judged by.
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
        """Return another figure of this paper, for the claim's strategy or the one named."""
        who = self.claim.strategy if strategy is None else strategy
        return self.paper.claim(who, quantity).value


Derivation = Callable[[Given], float]


@dataclass(frozen=True)
class Claim:
    """One figure that a paper prints.

    Attributes:
      strategy: name in STRATEGIES of the strategy it is about, or a method that this release lacks;
        "" where it is about the model or the machine.
      quantity: e.g. "TPS", "TPOT"; with `strategy` it names the claim within its paper.
      printed: the number as printed, without its unit: "12,800", "1.20M".
      unit: unit of the number; MiB and GiB where MB and GB are printed for powers of two.
      reading: what the figure can mean (papers use TPOT for different things).
      lines: numbers of all lines of the paper's text that print it.
      reason: the basis of the verdict, in one line.
      derive: computes the figure in `unit`; None where the text gives nothing to derive it from.
        A TPS is judged by physical bounds instead, and `derive` is what another paper implies.
      relation: the relation that the claim must have to the derived figure.
      otherwise: the verdict where it does not have it.
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
        """The value of one unit of the last printed digit."""
        return last_digit_of(self.printed)


@dataclass(frozen=True)
class Setup:
    """A line whose digits are part of the configuration, of a name or of a heading.

    Attributes:
      line: number of the line in the paper's text.
      what: what the number is, in our words.
      value: the number, which has to be on the line; None where it is part of a name.
    """

    line: int
    what: str
    value: float | None = None


@dataclass(frozen=True)
class Assumption:
    """A choice that the paper leaves open, with our value and the reason."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Validation:
    """A statement that the paper itself says must hold.

    Attributes:
      statement: the statement in our words.
      check: the figures that decide it, as "name" or "name:argument" (see report/validation.py).
    """

    statement: str
    check: str


@dataclass(frozen=True)
class Paper:
    """One paper's experiment.

    Attributes:
      name: short name, as flags take it.
      title: title in one line.
      config: the model at full size.
      workload: batch, length and microbatches.
      strategies: names in STRATEGIES of the strategies compared, the baseline first.
      cluster: name of the cluster that we take it to mean.
      claims, setup, assumptions, validations: as the classes of those names say.
      small_workload: the workload that the verify lens runs with config.small().
      proposed: name of the paper's own system, whether STRATEGIES has it or not.
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
        """Return the claim about a strategy's quantity.

        Raises:
          KeyError: the paper prints no such figure.
        """
        for claim in self.claims:
            if (claim.strategy, claim.quantity) == (strategy, quantity):
                return claim
        raise KeyError(f"{self.name}: no claim {quantity!r} of {strategy!r}")
