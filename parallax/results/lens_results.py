"""What the lenses found, as frozen values. Every number has a tag: where it is from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from parallax.bounds import Transfer
from parallax.hlo.execution_trace import ExecutionTrace
from parallax.hlo.ledger import Collective, Ledger
from parallax.programs.load_balance import LoadBalance
from parallax.workload import Workload

Tag = Literal["claimed", "assumed", "derived", "compiled", "modelled", "measured"]
TAGS: dict[str, str] = {
    "claimed": "printed in a paper",
    "assumed": "left out by the paper and chosen here (docs/generated/assumptions.md)",
    "derived": "from a closed form",
    "compiled": "read off the compiled program",
    "modelled": "from the cost model, with its error",
    "measured": "by a clock or a counter, here",
}


@dataclass(frozen=True)
class Figure:
    """One number with its unit and tag.

    Attributes:
      value: the number.
      unit: e.g. "B", "s", "tokens/s", "FLOP", "1" for a ratio.
      tag: where it is from.
      low, high: error bar or confidence interval, same unit; None where there is none.
      note: what a reader must know beside the number, in one line.
    """

    value: float
    unit: str
    tag: Tag
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Exactness:
    """One comparison with the unsharded model. Errors are relative L2 (tag: measured).

    Attributes:
      dtype: of parameters and activations.
      logits_error, gradients_error: against the unsharded model in float64; gradients are the worst
        over all parameters, None where there are none (decoding).
      logits_limit, gradients_limit: what they may be (the tolerance table).
      reference_error: the unsharded model's own logits error in this dtype; 0 in float64.
    """

    dtype: str
    logits_error: float
    gradients_error: float | None
    logits_limit: float
    gradients_limit: float | None
    reference_error: float

    @property
    def passed(self) -> bool:
        if not self.logits_error <= self.logits_limit:
            return False
        if self.gradients_error is None or self.gradients_limit is None:
            return True
        return self.gradients_error <= self.gradients_limit


@dataclass(frozen=True)
class RouterFacts:
    """What the routers of a model with experts did (tag: measured).

    Attributes:
      smallest_margin: between the last expert a token chose and the next, in probability, over all
        tokens and layers in float64: rounding far below it flips no choice.
      load_max_over_mean: choices of the busiest expert over an even share, of the worst layer.
      dropped: share of choices dropped for want of capacity.
      flips: by dtype lower than float64, the share of choices its own router would make otherwise;
        the float64 model's are replayed there.
    """

    smallest_margin: float
    load_max_over_mean: float
    dropped: float
    flips: dict[str, float]


@dataclass(frozen=True)
class Verification:
    """The verify lens: the small model under one strategy, on virtual or real devices.

    `approximation` names what the strategy computes otherwise than the unsharded model, "" if
    nothing: its errors are then distances, not judged. `router` is None without experts.
    `same_tokens`: of decoding, whether greedy tokens in float64 are the unsharded model's; None for
    a pass over whole sequences.
    `off_dense`: of a model whose weights are compressed, relative L2 of its float64 logits from the
    dense model's, both unsharded; None without, and of decoding.
    """

    model: str
    devices: int
    platform: str
    workload: Workload
    text: str
    logit_rms: float
    rows: tuple[Exactness, ...]
    seconds: float
    approximation: str = ""
    router: RouterFacts | None = None
    same_tokens: bool | None = None
    off_dense: float | None = None

    @property
    def exact(self) -> bool:
        return all(row.passed for row in self.rows) and self.same_tokens is not False


@dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory, as the compiler planned them (tag: compiled)."""

    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int
    parameter_bytes: int
    capacity_bytes: int
    usable_fraction: float

    @property
    def total_bytes(self) -> int:
        return self.argument_bytes + self.output_bytes + self.temp_bytes - self.alias_bytes

    @property
    def usable_bytes(self) -> float:
        return self.capacity_bytes * self.usable_fraction

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.usable_bytes


@dataclass(frozen=True)
class Difference:
    """A total that two accounts of the same program disagree on."""

    kind: str
    axes: tuple[str, ...]
    expected_bytes: float
    found_bytes: float
    witness: str


@dataclass(frozen=True)
class TimelineEvent:
    """One instruction of the busiest loop body, in scheduled order.

    Attributes: start, stop: position in the schedule, in units of FLOPs or bytes at the GPU's
    rates (modelled seconds); lane: "compute" or "communication".
    """

    name: str
    lane: str
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Compilation:
    """The compile lens: the real CUDA program of one strategy for a cluster.

    `phase` is "prefill" (a forward pass to last-position logits), "decode" (a new token of every
    sequence) or "train" (a step). `kv_cache_bytes` are held, and read, by a decoding step; a
    prefill would keep them. `link_bytes`: what the busiest device puts on "nvlink" and "nic".
    `work` is what a cost model prices; None with the reason in `unpriced` where it cannot be read.
    `flop_imbalance` is the busiest device's FLOPs over the mean, 1 where no branch depends on data;
    `evenness`, its load balance, is None where it is not known, as of a user module.
    """

    cluster: str
    mesh: str
    workload: Workload
    memory: Memory
    collectives: tuple[Collective, ...]
    transfers: tuple[Transfer, ...]
    has_closed_form: bool
    differences: tuple[Difference, ...]
    gemm_flops: float
    attention_flops: float
    weight_bytes: float
    kv_cache_bytes: float
    partitioner: str
    timeline: tuple[TimelineEvent, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    phase: str = "prefill"
    flop_imbalance: float = 1.0
    evenness: LoadBalance | None = None
    link_bytes: Mapping[str, float] = field(default_factory=dict)
    work: ExecutionTrace | None = field(default=None, repr=False)
    unpriced: str = ""

    @property
    def tokens(self) -> int:
        """Tokens that one call handles: a decoding step's are one of each sequence."""
        return self.workload.batch if self.reads_cache else self.workload.tokens

    @property
    def reads_cache(self) -> bool:
        """Whether a call reads the KV cache, one new token of each sequence: a decoding step."""
        return self.phase == "decode"

    @property
    def ledger(self) -> Ledger:
        """The collectives, with totals by kind and mesh axes."""
        return Ledger(self.collectives)

    @property
    def wire_bytes(self) -> float:
        return sum(c.total_bytes for c in self.collectives)

    @property
    def minimum_bytes(self) -> float:
        return sum(t.minimum_bytes for t in self.transfers)

    @property
    def ledger_matches(self) -> bool:
        return not self.differences


@dataclass(frozen=True)
class Bound:
    """A roofline: no program can be faster than its largest term, at peak rates.

    Attributes:
      cluster: whose rates are taken.
      terms_s: seconds of each resource (compute, HBM, NVLink, network).
      step_s: the largest of them. tokens_per_s: tokens of the call over step_s, an upper bound.
    """

    cluster: str
    terms_s: Mapping[str, float]
    step_s: Figure
    tokens_per_s: Figure

    @property
    def set_by(self) -> str:
        """The resource that is the bottleneck."""
        return max(self.terms_s, key=lambda name: self.terms_s[name])


@dataclass(frozen=True)
class Prediction:
    """The predict lens: a compiled program priced by the cost model.

    Attributes:
      rates: name and version of the constants.
      cluster, phase: of the program.
      step_s: of one call, with an 80 % error bar: of a prefill the TTFT of its batch, of a decoding
        step the TPOT of its sequences.
      tokens_per_s: tokens of the call over step_s.
      terms_s: parts of step_s that add up to it.
      exposed_s, hidden_s: collectives that nothing covers, and those behind kernels.
      exposed_per_token_s: exposed over the tokens of the call.
      mfu: FLOPs the model needs over what the devices could have done in step_s; None where
        nobody knows what the model needs.
      energy_j: of one call on all devices.
      bound: the roofline.
      unvalidated: what no published measurement stands behind, in words; "" if nothing.
      estimate_s: a closed form's answer to the same question; None where there is none.
      notes: what a reader must know beside the figures.
    """

    rates: str
    cluster: str
    phase: str
    step_s: Figure
    tokens_per_s: Figure
    terms_s: Mapping[str, float]
    exposed_s: Figure
    hidden_s: Figure
    exposed_per_token_s: Figure
    energy_j: Figure
    bound: Bound
    mfu: Figure | None = None
    unvalidated: str = ""
    estimate_s: Figure | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """The measure lens: a step on the devices at hand.

    `energy_j`: joules of a step on all devices, by their counters; None where there are none.
    """

    device: str
    devices: int
    model: str
    workload: Workload
    step_s: Figure
    repeats: int
    energy_j: Figure | None = None

    @property
    def energy_a_token_j(self) -> Figure | None:
        """Joules a token of the step."""
        e = self.energy_j
        return e and Figure(e.value / self.workload.tokens, "J", "measured", note=e.note)


@dataclass(frozen=True)
class StrategyResult:
    """All lenses on one strategy; None where a lens did not run.

    `skipped`: lens -> why it did not run, for a reason that is not the strategy's. `refused`:
    lens -> why this strategy cannot run it.
    """

    strategy: dict
    description: str
    verification: Verification | None = None
    compilation: Compilation | None = None
    prediction: Prediction | None = None
    measurement: Measurement | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.strategy["name"]

    @property
    def failed(self) -> bool:
        """Cannot run, is not exact, does not fit, or moves other bytes than its closed form. A
        named approximation is no failure."""
        v = self.verification
        verified = v is None or v.exact or bool(v.approximation)
        compiled = self.compilation is None or (
            self.compilation.memory.fits and self.compilation.ledger_matches
        )
        return bool(self.refused) or not (verified and compiled)
