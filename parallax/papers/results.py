"""The results of auditing a paper and of placing a model's layers, as frozen values."""

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
    """The limit on tokens per second, if every device works at peak and nothing waits (derived).

    Attributes:
      reading: "prefill" counts the tokens of all prompts over one pass, "decode" one new token per
        sequence over one step, with a KV cache of the whole length.
      tokens: tokens per pass or step.
      terms_s: term -> its least time over all devices, in seconds.
      held_bytes: weights, and when decoding the KV cache, over all devices.
      room_bytes: usable memory of all devices.
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
      value: what the printed number would be under it; for an overhead, at most.
      says: the reading with its figure, in words.
      possible: whether the printed number can be that, to within 2.5 %.
    """

    name: str
    value: float
    says: str
    possible: bool


@dataclass(frozen=True)
class ReadTps:
    """A throughput claim under one reading.

    Attributes:
      limit: the limit that the machine sets.
      modelled: tokens/s by the cost model, None without one.
      beyond: whether the claim is above the limit, or the reading needs more memory than there is.
    """

    limit: Limit
    modelled: Figure | None
    beyond: bool


@dataclass(frozen=True)
class Audited:
    """One claim with its verdict.

    Attributes:
      claim: the claim as printed.
      derived: the derived figure in the claim's unit; for a TPS, the largest limit of its readings;
        None where the text gives nothing to derive it from.
      verdict: the verdict.
      reason: the reason for it, in one line.
      implied: for a TPS, the figure that another paper implies; None where none is comparable.
      tps: every reading of a throughput, () for other claims.
      tpot: every reading of a TPOT, () for other claims.
      elsewhere: what changes on the other interconnect, "" if nothing.
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
        """The claimed figure over the derived one, or over the modelled one if judged by that."""
        base = self.derived
        if self.verdict == "modelled, off by":
            base = next(r.modelled.value for r in self.tps if r.modelled and not r.beyond)
        return self.claim.value / base if base else None


@dataclass(frozen=True)
class FootprintRow:
    """Bytes of a part of a layer (tag: derived) beside a paper's figure (tag: claimed).

    Attributes:
      formats: formats of attention's and of the MLP's matrices.
      what: the part that is counted.
      n_bytes: its exact bytes.
      claim: the paper's figure; None where it prints none.
      verdict: how the two compare, to the printed precision; "" without a claim.
      why: why they differ, or what is counted.
    """

    formats: tuple[str, str]
    what: str
    n_bytes: int
    claim: Claim | None = None
    verdict: FootprintVerdict | Literal[""] = ""
    why: str = ""


@dataclass(frozen=True)
class PlacedRow:
    """A placement of layers for one budget and one storage of the weights (tag: derived).

    Attributes:
      asked: the budget as asked for.
      budget: the budget per device.
      formats: formats of attention's and of the MLP's matrices.
      counted: the parts of a layer that count against the budget.
      largest: the verdict on the largest group: greedy's, or that of layers split evenly where no
        placement keeps the budget.
      greedy, optimal: number of layers per device; () where there is no placement.
      why_not: why there is no placement; "" if there is one.
      bits_to_fit: bits per weight at which the largest group just fits; 0 where the rest alone does
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
        """The size of greedy's largest group over the optimum's; nan without both."""
        if not self.greedy or not self.optimal:
            return math.nan
        return max(self.greedy) / max(self.optimal)


@dataclass(frozen=True)
class PlacementFacts:
    """The footprints of layers beside a paper's figures, and placements under budgets.

    Attributes:
      model, cluster: names of the model and the cluster. devices: number of devices.
      workload: the workload whose activations and cache are counted; None if neither is.
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
    """One strategy with one layer per device.

    Attributes:
      layers: layers of the model, and as many devices.
      strategy: name of the strategy.
      formats: formats of attention's and of the MLP's matrices.
      unpacking: how packed weights are unpacked; "" where they are dense.
      phase: the phase that is modelled.
      asked_batch, batch: sequences of the paper, and those that fit (fewer by a power of two).
      microbatches: the fastest number of microbatches; 0 where nothing fits.
      tokens_per_s, j_per_token: modelled; None where nothing fits.
      l2_use: weight bytes per device over the size of its L2 cache (derived).
      hbm_use: bytes that a device holds over its usable memory (derived).
      hit_rate: share of weight reads that the L2 cache serves (modelled).
      claims: quantity -> the paper's figure for this row.
      why_not: what does not fit; "" where all does.
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
        """The tokens per joule, modelled; None where nothing fits."""
        energy = self.j_per_token
        return None if energy is None else Figure(1 / energy.value, "tokens/J", "modelled")


@dataclass(frozen=True)
class Findings:
    """The findings for a report beside its run; empty where nothing was asked for.

    Attributes:
      audited: the paper's claims, each with its verdict.
      placement: footprints of the model's layers, and their placement under budgets.
      scale: the paper's strategies with one layer on each device.
    """

    audited: tuple[Audited, ...] = ()
    placement: PlacementFacts | None = None
    scale: tuple[ScaleRow, ...] = ()
