"""What is found about a paper's figures and a model's layers, as frozen values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from parallax.papers.paper import Claim, Verdict
from parallax.placement import Budget, GroupVerdict
from parallax.results.lens_results import Figure
from parallax.rules import Phase
from parallax.workload import Workload

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TpsReading = Literal["prefill", "decode"]
FootprintVerdict = Literal["consistent", "rounding", "differs", "our deviation"]


@dataclass(frozen=True)
class Limit:
    """The most tokens a second, if every device works at peak and nothing waits (tag: derived).

    Attributes:
      reading: "prefill" counts the tokens of all prompts over one pass, "decode" one new token of
        every sequence over one step, each beside a cache of the whole length.
      tokens: of one pass or step.
      terms_s: the least time of each term, over all devices, seconds.
      held_bytes: weights, and when decoding the KV cache, over all devices.
      room_bytes: what the devices can hold.
    """

    reading: TpsReading
    tokens: int
    terms_s: dict[str, float]
    held_bytes: float
    room_bytes: float

    @property
    def fits(self) -> bool:
        return self.held_bytes <= self.room_bytes

    @property
    def set_by(self) -> str:
        return max(self.terms_s, key=lambda term: self.terms_s[term])

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.terms_s.values())


@dataclass(frozen=True)
class TpotReading:
    """One reading of a TPOT.

    Attributes:
      name: `inv_tps`, `inv_tps_us_printed_ms` and `sync_overhead_per_token` as a Reading has them;
        "request" is MLPerf's: (latency - TTFT) / (output tokens - 1).
      value: what the printed number would be under it; of an overhead, the most.
      says: the reading with its figure, in words.
      possible: whether the printed number can be that, to 2.5 %.
    """

    name: str
    value: float
    says: str
    possible: bool


@dataclass(frozen=True)
class ReadTps:
    """A throughput under one reading.

    Attributes:
      limit: what the machine allows.
      modelled: tokens/s of the cost model, None without one.
      beyond: the claim is above the limit, or the reading needs more memory than there is.
    """

    limit: Limit
    modelled: Figure | None
    beyond: bool


@dataclass(frozen=True)
class Audited:
    """One claim with its verdict.

    Attributes:
      claim: as printed.
      derived: what it comes to, in the claim's unit; of a TPS, the largest limit of its readings;
        None where the text gives nothing.
      verdict: what follows.
      reason: in one line.
      implied: of a TPS, what another paper's figure comes to here; None where none is comparable.
      tps: every reading of a throughput, () of other claims.
      tpot: every reading of a TPOT, () of other claims.
      elsewhere: what changes on the other wiring, "" if nothing.
    """

    claim: Claim
    derived: float | None
    verdict: Verdict
    reason: str
    implied: float | None = None
    tps: tuple[ReadTps, ...] = ()
    tpot: tuple[TpotReading, ...] = ()
    elsewhere: str = ""

    @property
    def off_by(self) -> float | None:
        """Claimed over derived; over what is modelled where the verdict is about that."""
        base = self.derived
        if self.verdict == "modelled, off by":
            base = next(r.modelled.value for r in self.tps if r.modelled and not r.beyond)
        return self.claim.value / base if base else None


@dataclass(frozen=True)
class FootprintRow:
    """One figure (tag: derived) beside a paper's (tag: claimed).

    Attributes:
      formats: of the attention's and of the MLP's matrices.
      what: is counted.
      n_bytes: ours, exact.
      claim: the paper's; None where it prints none.
      verdict: of the two, to the printed precision; "" without a claim.
      why: they differ, or what is in ours.
    """

    formats: tuple[str, str]
    what: str
    n_bytes: int
    claim: Claim | None = None
    verdict: FootprintVerdict | Literal[""] = ""
    why: str = ""


@dataclass(frozen=True)
class PlacedRow:
    """One budget and one storage of the weights (tag: derived).

    Attributes:
      asked: the budget as asked for.
      budget: of one device.
      formats: of the attention's and of the MLP's matrices.
      counted: what of a layer counts against the budget.
      largest: the verdict on the largest group: as greedy makes it, or of layers dealt out evenly
        where no placement keeps the budget.
      greedy, optimal: layers of each device; () where the rule finds none.
      why_not: why there is no placement; "" if there is one.
      bits_to_fit: bits a weight at which the largest group just fits; 0 where the rest alone does
        not.
    """

    asked: str
    budget: Budget
    formats: tuple[str, str]
    counted: str
    largest: GroupVerdict
    greedy: tuple[int, ...]
    optimal: tuple[int, ...]
    why_not: str = ""
    bits_to_fit: float = 0.0

    @property
    def greedy_over_optimal(self) -> float:
        """How many times longer greedy's slowest group takes; nan without both."""
        if not self.greedy or not self.optimal:
            return math.nan
        return max(self.greedy) / max(self.optimal)


@dataclass(frozen=True)
class PlacementFacts:
    """Footprints beside a paper's figures, and placements under budgets.

    Attributes:
      model, cluster: by name; devices, how many.
      workload: whose activations and cache are counted; None if neither is.
      footprints, placed: the rows.
    """

    model: str
    cluster: str
    devices: int
    workload: Workload | None
    footprints: tuple[FootprintRow, ...]
    placed: tuple[PlacedRow, ...]


@dataclass(frozen=True)
class ScaleRow:
    """One strategy with one layer a device.

    Attributes:
      layers: of the model, and as many devices.
      strategy: its name.
      formats: of the attention's and of the MLP's matrices.
      unpacking: how packed weights are read; "" where they are dense.
      phase: of what is modelled.
      asked_batch, batch: sequences of the paper, and those that fit (a power of two fewer).
      microbatches: at which it is fastest; 0 where nothing fits.
      tokens_per_s, j_per_token: modelled; None where nothing fits.
      l2_use: weights of a device over its L2 cache (derived).
      hbm_use: bytes that a device holds over those it may (derived).
      hit_rate: share of weight reads that the L2 cache serves (modelled).
      claims: the paper's figures of this row, by quantity.
      why_not: what does not fit.
    """

    layers: int
    strategy: str
    formats: tuple[str, str]
    unpacking: str
    phase: Phase
    asked_batch: int
    batch: int
    microbatches: int
    tokens_per_s: Figure | None
    j_per_token: Figure | None
    l2_use: Figure
    hbm_use: Figure | None
    hit_rate: Figure | None
    claims: Mapping[str, Claim]
    why_not: str = ""

    @property
    def tokens_per_j(self) -> Figure | None:
        """Modelled."""
        found = self.j_per_token
        return None if found is None else Figure(1 / found.value, "tokens/J", "modelled")


@dataclass(frozen=True)
class Findings:
    """What was worked out for a report beside its run; empty where nothing was asked for.

    Attributes:
      audited: the paper's claims, each with its verdict.
      placement: footprints of the model's layers, and where they go under budgets.
      scale: the paper's strategies with one layer on each device.
    """

    audited: tuple[Audited, ...] = ()
    placement: PlacementFacts | None = None
    scale: tuple[ScaleRow, ...] = ()
