"""What a search found, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from parallax.models.config import ModelConfig
from parallax.requests.plan import Objective
from parallax.results.lens_results import Figure
from parallax.strategy import Strategy

OBJECTIVES: dict[Objective, str] = {
    "tps": "most output tokens a second",
    "tpot": "least time per output token",
    "energy": "least energy per output token",
}


@dataclass(frozen=True)
class SearchRequest:
    """What is served: `batch` prompts of prompt_len tokens, output_len new tokens for each.

    Attributes:
      model, batch, prompt_len, output_len: the workload; all prompts start together.
      cluster: its name.
      objective: what is best.
      max_tpot_s: slower candidates are out; None is no limit.
      compressions: formats of attention's and the MLP's matrices, each tried with every strategy;
        None is the model as it is.
      kernels: what all strategies compute with where it can, see `Strategy.kernels`.
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
        """The same of the model with its matrices in these formats."""
        if compression is None:
            return self
        return replace(self, model=self.model.replace(compression=compression))


@dataclass(frozen=True)
class Timing:
    """One way of knowing a candidate's times: by closed form, or of its compiled programs.

    Attributes:
      ttft_s: of the whole batch's prefill. tpot_s: a decoding step at the mean length; None where
        one token is asked for.
      tokens_per_s: output tokens over the whole time. energy_j: an output token.
      memory_bytes: that a device needs.
      terms_s: parts of the whole time.
      unvalidated: what no published measurement stands behind.
    """

    ttft_s: Figure
    tpot_s: Figure | None
    tokens_per_s: Figure
    energy_j: Figure
    memory_bytes: Figure
    terms_s: Mapping[str, float]
    unvalidated: str = ""

    def score(self, objective: Objective) -> float:
        """The less the better."""
        if objective == "tpot":
            return (self.tpot_s or self.ttft_s).value
        if objective == "energy":
            return self.energy_j.value
        return 1 / self.tokens_per_s.value


@dataclass(frozen=True)
class Candidate:
    """One strategy in a search.

    Attributes:
      strategy, microbatches: of its prefill.
      closed_form: its times without compiling.
      compiled: of its programs; None where it was not among the best.
      fits: as far as is known.
      bubble: share of ticks in which a stage idles.
      runs: sequences and prompt tokens as priced, filled up to what the strategy deals out.
      padded: share of layers that are zeros, where stages are of unequal depth.
      compression: formats of the matrices; None is the model as it is.
      why: what keeps it from being first, in one line; "" for the winner.
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
        """The best there is."""
        return self.compiled or self.closed_form


@dataclass(frozen=True)
class Search:
    """A ranking.

    Attributes:
      ranked: best first; candidates that do not fit, or are too slow, behind all that do.
      considered: how many strategies were priced.
      refused: reason -> how many could not be: sizes that do not divide.
      seconds: how long ranking, and compiling, took.
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
        """Candidates that fit and that no other beats in throughput and TPOT, fastest first."""
        best, kept = float("inf"), []
        able = [c for c in self.ranked if c.fits]
        for c in sorted(able, key=lambda c: -c.timing.tokens_per_s.value):
            tpot = (c.timing.tpot_s or c.timing.ttft_s).value
            if tpot < best:
                best = tpot
                kept.append(c)
        return tuple(kept)

    @property
    def winner(self) -> Candidate | None:
        """The first that fits and is fast enough; None if none is."""
        first = self.ranked[0] if self.ranked else None
        return first if first is not None and not first.why else None


@dataclass(frozen=True)
class Point:
    """One place of a map.

    Attributes:
      x, y: its coordinates.
      seconds: strategy -> modelled seconds of one prefill; only those that can run and fit.
    """

    x: float
    y: float
    seconds: Mapping[str, float]

    @property
    def winner(self) -> str:
        """The fastest; "" where nothing can run."""
        return min(self.seconds, key=lambda n: self.seconds[n]) if self.seconds else ""

    @property
    def lead(self) -> float:
        """How many times slower the second is; 1 where there is none."""
        best = sorted(self.seconds.values())
        return best[1] / best[0] if len(best) > 1 else 1.0


@dataclass(frozen=True)
class RegimeMap:
    """A map. `x`, `y` name its axes; `constant` says what stays the same."""

    x: str
    y: str
    constant: str
    points: tuple[Point, ...]
