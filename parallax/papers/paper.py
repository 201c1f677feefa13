"""What a paper says, as data."""

from dataclasses import dataclass
from typing import Literal

from parallax.models.config import ModelConfig
from parallax.workload import Workload

Reading = Literal["tps", "inv_tps", "inv_tps_us_printed_ms", "sync_overhead_per_token", "other"]


@dataclass(frozen=True)
class Claim:
    """One figure a paper prints.

    Attributes:
      strategy: the STRATEGIES name it is about, or a method this release does not have yet; ""
        where it is about the model or the machine.
      quantity: e.g. "TPS", "TPOT".
      value, unit: as printed.
      reading: what the figure can mean (papers use TPOT for different things).
      note: what contradicts it, or explains it, in one line.
    """

    strategy: str
    quantity: str
    value: float
    unit: str
    reading: Reading
    note: str = ""


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
      claims, assumptions, validations: see there.
      small_workload: what the verify lens runs beside config.small().
      proposed: STRATEGIES name of the paper's own system, whether this release has it or not.
      missing: what of the paper this release does not have, as a phrase; "" if nothing. Its claims
        then stand without a result beside them.
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
    missing: str = ""
