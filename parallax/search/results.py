"""The request and the results of a search, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from parallax.models.config import ModelConfig
from parallax.requests.plan import Objective
from parallax.results.lens_results import Figure
from parallax.strategy import Strategy

OBJECTIVES: dict[Objective, str] = {
    "tps": "most output tokens per second",
    "tpot": "least time per output token",
    "energy": "least energy per output token",
}


@dataclass(frozen=True)
class SearchRequest:
    """The workload to serve: `batch` prompts of prompt_len tokens, output_len new tokens each.

    Attributes:
      model, batch, prompt_len, output_len: the workload; all prompts start together.
      cluster: name of the cluster.
      objective: the quantity to optimise.
      max_tpot_s: longest time per output token, in seconds; None is no limit.
      compressions: formats of attention's and the MLP's matrices, each tried with every strategy;
        None is the model as it is.
      kernels: kernels that all strategies use where they apply, see `Strategy.kernels`.
    """

    model: ModelConfig
    batch: int
    prompt_len: int
    output_len: int
    cluster: str
    objective: Objective = "tps"
    max_tpot_s: float | None = None
    compressions: tuple[tuple[str, str] | None, ...] = (None,)
    kernels: str | None = None

    def stored(self, compression: tuple[str, str] | None) -> "SearchRequest":
        """Return the request for the model with its matrices in these formats."""
        if compression is None:
            return self
        return replace(self, model=self.model.replace(compression=compression))


@dataclass(frozen=True)
class Timing:
    """The times of a candidate, by the analytical model or from its compiled programs.

    Attributes:
      ttft_s: time of the whole batch's prefill. tpot_s: time of a decoding step at the mean length;
        None where one token is asked for.
      tokens_per_s: output tokens over the whole time. energy_j: joules per output token.
      memory_bytes: bytes that a device needs.
      terms_s: the parts of the whole time, in seconds.
      unvalidated: the parts that no published measurement validates; "" if none.
    """

    ttft_s: Figure
    tpot_s: Figure | None
    tokens_per_s: Figure
    energy_j: Figure
    memory_bytes: Figure
    terms_s: Mapping[str, float]
    unvalidated: str = ""

    def score(self, objective: Objective) -> float:
        """Return the score under an objective; less is better."""
        if objective == "tpot":
            return (self.tpot_s or self.ttft_s).value
        if objective == "energy":
            return self.energy_j.value
        return 1 / self.tokens_per_s.value


@dataclass(frozen=True)
class Candidate:
    """One strategy in a search.

    Attributes:
      strategy, microbatches: the strategy, and the microbatches of its prefill.
      closed_form: times by the analytical model.
      compiled: times from its compiled programs; None where it was not among the best.
      fits: whether it fits a device, as far as is known.
      bubble: idle ticks of a stage over its busy ones.
      runs: sequences and prompt tokens as estimated, padded to multiples that the strategy splits.
      padded: share of the layers that are padding, where stages have unequal depth.
      compression: formats of the matrices; None is the model as it is.
      why: the reason it is not the first, in one line; "" for the winner.
    """

    strategy: Strategy
    microbatches: int
    closed_form: Timing
    fits: bool
    bubble: float
    padded: float = 0.0
    runs: tuple[int, int] = (0, 0)
    compression: tuple[str, str] | None = None
    compiled: Timing | None = None
    why: str = ""

    @property
    def timing(self) -> Timing:
        """The times from compiled programs where there are any, else by the analytical model."""
        return self.compiled or self.closed_form


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
      request: what was asked for.
      ranked: candidates, best first; those that do not fit or are too slow come last.
      considered: number of candidates estimated.
      refused: reason -> number of candidates refused for it, such as sizes that do not divide.
      seconds: seconds that ranking, and compiling, took.
      notes: what was left out of the search, in sentences.
    """

    request: SearchRequest
    ranked: tuple[Candidate, ...]
    considered: int
    refused: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def frontier(self) -> tuple[Candidate, ...]:
        """The candidates that fit and that none beats in throughput and TPOT, fastest first.

        Where any that fits is compiled, they are those compiled: only times of one kind compare.
        """
        best, kept = float("inf"), []
        able = [c for c in self.ranked if c.fits]
        able = [c for c in able if c.compiled] or able
        for c in sorted(able, key=lambda c: -c.timing.tokens_per_s.value):
            tpot = (c.timing.tpot_s or c.timing.ttft_s).value
            if tpot < best:
                best = tpot
                kept.append(c)
        return tuple(kept)

    @property
    def winner(self) -> Candidate | None:
        """The first candidate, if it fits and is fast enough; None otherwise."""
        first = self.ranked[0] if self.ranked else None
        return first if first is not None and not first.why else None


@dataclass(frozen=True)
class Point:
    """One point of a regime map.

    Attributes:
      x, y: its coordinates.
      seconds: strategy -> modelled seconds of one prefill; only those that can run and fit.
    """

    x: float
    y: float
    seconds: Mapping[str, float]

    @property
    def winner(self) -> str:
        """The fastest strategy; "" where none can run."""
        return min(self.seconds, key=lambda n: self.seconds[n]) if self.seconds else ""

    @property
    def lead(self) -> float:
        """The time of the second strategy over the fastest's; 1 where there is no second."""
        best = sorted(self.seconds.values())
        return best[1] / best[0] if len(best) > 1 else 1.0


@dataclass(frozen=True)
class RegimeMap:
    """A map of the fastest strategy: `x` and `y` name its axes, `constant` what stays the same."""

    x: str
    y: str
    constant: str
    points: tuple[Point, ...]
