"""The request and the results of a search for the best way to train, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from parallax.models.config import ModelConfig
from parallax.parallel.remat import Remat
from parallax.requests.plan import Objective
from parallax.results.lens_results import Figure
from parallax.strategy import Strategy

TRAIN_OBJECTIVES: dict[Objective, str] = {
    "tps": "most tokens per second",
    "energy": "least energy per token",
}


@dataclass(frozen=True)
class TrainSearchRequest:
    """The training to plan: steps of `batch` sequences of seq_len tokens.

    Attributes:
      model, batch, seq_len: the model, and the sequences of one step over all devices.
      cluster: name of the cluster.
      objective: the quantity to optimise, one of TRAIN_OBJECTIVES.
      max_bytes: memory per device that a step may need; None is what the GPU has.
      kernels: kernels that all strategies use where they apply, see `Strategy.kernels`.
    """

    model: ModelConfig
    batch: int
    seq_len: int
    cluster: str
    objective: Objective = "tps"
    max_bytes: float | None = None
    kernels: str | None = None


@dataclass(frozen=True)
class TrainTiming:
    """The figures of a candidate's step, by the analytical model or from its compiled program.

    Attributes:
      step_s: time of a step. tokens_per_s: over all devices.
      energy_j: joules per token. mfu: the model's FLOPs as a share of the GPUs' peak.
      memory_bytes: bytes that a device needs.
      terms_s: the parts of the step's time, in seconds.
      unvalidated: the parts that no published measurement validates; "" if none.
    """

    step_s: Figure
    tokens_per_s: Figure
    energy_j: Figure
    mfu: Figure
    memory_bytes: Figure
    terms_s: Mapping[str, float]
    unvalidated: str = ""

    def score(self, objective: Objective) -> float:
        """Return the score under an objective; less is better."""
        return self.energy_j.value if objective == "energy" else self.step_s.value


@dataclass(frozen=True)
class TrainCandidate:
    """One way to train.

    Attributes:
      strategy: the strategy, with its sharding and schedule.
      microbatches: microbatches of each device.
      remat: what the backward pass of each layer recomputes.
      closed_form: figures by the analytical model.
      fits: whether it fits a device, as far as is known.
      parts: purpose -> bytes per device, by closed form.
      bubble: time that a stage idles or waits over the time that it works.
      kept_bytes: memory with the next choice that recomputes less, which does not fit; None where
        nothing less is recomputed.
      compiled: figures from its compiled program; None where it was not among the best.
      why: the reason it is not the first, in one line; "" for the winner.
    """

    strategy: Strategy
    microbatches: int
    remat: Remat
    closed_form: TrainTiming
    fits: bool
    parts: Mapping[str, float]
    bubble: float = 0.0
    kept_bytes: tuple[Remat, float] | None = None
    compiled: TrainTiming | None = None
    why: str = ""

    @property
    def timing(self) -> TrainTiming:
        """The figures from a compiled program where there are any, else by the analytical model."""
        return self.compiled or self.closed_form

    @property
    def sharding(self) -> str:
        """How weights and optimizer state are sharded, in a few words."""
        rules = self.strategy.rules
        weights, state = rules.table()["embed"], rules.table("optimizer")["embed"]
        if not state:
            return "-"
        further = [axis for axis in state if axis not in weights]
        words = [f"weights {'*'.join(weights)} ({self.strategy.gather})"] if weights else []
        return ", ".join([*words, *([f"state {'*'.join(further)}"] if further else [])])

    @property
    def schedule(self) -> str:
        """The pipeline schedule; "-" without stages."""
        layers = self.strategy.layers
        if not (name := getattr(layers, "schedule", "")):
            return "-"
        chunks = getattr(layers, "virtual_stages", 1)
        return name if chunks == 1 else f"{name} v={chunks}"


@dataclass(frozen=True)
class TrainSearch:
    """The result of a search.

    Attributes:
      request: what was asked for.
      ranked: for each strategy and way to shard its weights the best candidate, best first; those
        that do not fit come last.
      considered: number of choices of strategy, sharding, schedule, microbatches and remat.
      estimated: those of them whose time was estimated; the others do not fit, or recompute or
        accumulate more than one that does.
      refused: reason -> number of strategies refused for it.
      seconds: seconds that ranking, and compiling, took.
    """

    request: TrainSearchRequest
    ranked: tuple[TrainCandidate, ...]
    considered: int
    estimated: int
    refused: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def winner(self) -> TrainCandidate | None:
        """The first candidate, if it fits; None otherwise."""
        first = self.ranked[0] if self.ranked else None
        return first if first is not None and not first.why else None
