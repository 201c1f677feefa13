"""The results of the lenses, as frozen values; every number has a tag for its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from parallax.bounds import Transfer
from parallax.hlo.execution_trace import ExecutionTrace
from parallax.hlo.ledger import Collective, Ledger
from parallax.programs.load_balance import LoadBalance
from parallax.results.compilation_text import compilation_text
from parallax.results.profile_results import OperationProfile
from parallax.results.router_facts import RouterFacts
from parallax.results.training_facts import TrainingFacts
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
      unit: e.g. "B", "s", "tokens/s", "FLOP", or "1" for a ratio.
      tag: the number's source.
      low, high: error bar or confidence interval in the same unit; None where there is none.
      note: a caveat in one line; "" if there is none.
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
      dtype: dtype of parameters and activations.
      logits_error, gradients_error: errors against the unsharded model in float64; that of the
        gradients is the worst over all parameters, None without gradients (decoding).
      logits_limit, gradients_limit: the largest errors allowed (the tolerance table).
      reference_error: the unsharded model's own logits error in this dtype; 0 in float64.
      worst_parameter: the path of the parameter whose gradient has the error; "" if not recorded.
    """

    dtype: str
    logits_error: float
    gradients_error: float | None
    logits_limit: float
    gradients_limit: float | None
    reference_error: float
    worst_parameter: str = ""

    @property
    def passed(self) -> bool:
        if not self.logits_error <= self.logits_limit:
            return False
        if self.gradients_error is None or self.gradients_limit is None:
            return True
        return self.gradients_error <= self.gradients_limit


@dataclass(frozen=True)
class Verification:
    """The result of the verify lens: the small model under one strategy.

    `approximation` names what the strategy computes differently from the unsharded model, "" if
    nothing: its errors are then distances and not judged. `router` is None without experts.
    `same_tokens` says of decoding whether greedy tokens in float64 are the unsharded model's; None
    for a pass over whole sequences.
    `off_dense` is the error of a compressed model against the dense one: the relative L2 error of
    float64 logits, both unsharded; None for a dense model, and for decoding.
    `notes` say, one line each, why a user module is not exact, what it computes in less than
    float64, and which of its parameters the rules do not split.
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
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return all(row.passed for row in self.rows) and self.same_tokens is not False


@dataclass(frozen=True)
class Memory:
    """The memory of one device in bytes, as the compiler planned it (tag: compiled).

    `constant_bytes` are the arrays that the program holds as constants, whole on every device.
    """

    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int
    parameter_bytes: int
    capacity_bytes: int
    usable_fraction: float
    constant_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        held = self.argument_bytes + self.output_bytes - self.alias_bytes
        return held + self.temp_bytes + self.constant_bytes

    @property
    def usable_bytes(self) -> float:
        return self.capacity_bytes * self.usable_fraction

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.usable_bytes


@dataclass(frozen=True)
class Difference:
    """A total of bytes on which two accounts of the same program disagree."""

    kind: str
    axes: tuple[str, ...]
    expected_bytes: float
    found_bytes: float
    witness: str


@dataclass(frozen=True)
class TimelineEvent:
    """One instruction of the busiest loop body, in scheduled order.

    Attributes:
      name: name of the instruction.
      lane: "compute" or "communication".
      start_s, stop_s: position in the schedule, in modelled seconds at the GPU's peak rates.
    """

    name: str
    lane: str
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Compilation:
    """The result of the compile lens: the real CUDA program of one strategy for a cluster.

    `phase` is "prefill" (a forward pass to last-position logits), "decode" (one new token per
    sequence), "train" (a step) or "call" (of a user's function, whose tokens are unknown: it counts
    as one). `kv_cache_bytes` per device are held and read by a decoding step;
    a prefill could keep them. `link_bytes` are what the busiest device sends over "nvlink" and
    "nic". `work` is the execution trace that cost estimation takes; None, with the reason in
    `unpriced`, where the program cannot be read. `flop_imbalance` is the busiest device's FLOPs
    over the mean, 1 where no branch depends on data; `evenness` is the strategy's load balance,
    None where it is unknown, as for a user module. `remat` is what the backward pass of a training
    step recomputes, "" in other phases.
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
    remat: str = ""

    @property
    def tokens(self) -> int:
        """The tokens that one call handles: one per sequence in a decoding step."""
        return self.workload.batch if self.reads_cache else self.workload.tokens

    @property
    def rate_unit(self) -> str:
        """The unit of a rate: tokens per second, or calls where the tokens are unknown."""
        return "calls/s" if self.phase == "call" else "tokens/s"

    @property
    def reads_cache(self) -> bool:
        """Whether a call reads the KV cache, as a decoding step does."""
        return self.phase == "decode"

    @property
    def ledger(self) -> Ledger:
        """The ledger of the collectives, with totals by kind and mesh axes."""
        return Ledger(self.collectives)

    @property
    def wire_bytes(self) -> float:
        return self.ledger.total()

    @property
    def minimum_bytes(self) -> float:
        return sum(t.minimum_bytes for t in self.transfers)

    @property
    def ledger_matches(self) -> bool:
        return not self.differences

    def as_text(self) -> str:
        """Return memory, FLOPs and collectives in words, and how to get the module's own text."""
        return compilation_text(self)


@dataclass(frozen=True)
class Bound:
    """A roofline: a lower bound of the step time, set by the largest term at peak rates.

    Attributes:
      cluster: name of the cluster whose peak rates are used.
      terms_s: resource (compute, HBM, NVLink, network) -> seconds.
      step_s: the largest of the terms. tokens_per_s: tokens per call over step_s, an upper bound.
    """

    cluster: str
    terms_s: Mapping[str, float]
    step_s: Figure
    tokens_per_s: Figure

    @property
    def set_by(self) -> str:
        """The bottleneck: the resource with the largest term."""
        return max(self.terms_s, key=lambda name: self.terms_s[name])


@dataclass(frozen=True)
class Prediction:
    """The result of the predict lens: the cost model's estimate for a compiled program.

    Attributes:
      rates: name and version of the cost model constants.
      cluster, phase: cluster and phase of the program.
      step_s: seconds per call with an 80 % error bar: for a prefill the TTFT of its batch, for a
        decoding step the TPOT of its sequences.
      tokens_per_s: tokens per call over step_s.
      terms_s: the parts of step_s, which add up to it.
      exposed_s, hidden_s: time of collectives that nothing overlaps, and of those behind kernels.
      exposed_per_token_s: exposed_s over the tokens of the call.
      mfu: FLOPs that the model needs over those the devices could have done in step_s; None where
        the former are unknown.
      energy_j: joules per call on all devices.
      bound: the roofline.
      unvalidated: the parts that no published measurement validates, in words; "" if there are
        none.
      estimate_s: the analytical model's step time; None where there is none.
      notes: caveats beside the figures.
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
class ProcessTime:
    """The mean time of the same steps by one process's clock, among several processes.

    Attributes:
      process: index of the process. host: name of its host.
      step_s: seconds per step until this process's own devices are done, with a 95 % interval.
    """

    process: int
    host: str
    step_s: Figure


@dataclass(frozen=True)
class Measurement:
    """The result of the measure lens: a step on all devices of its mesh.

    Attributes:
      device, devices: kind and number of devices. model, workload: what ran.
      step_s: seconds per step, which is over when all processes are done, with a 95 % interval.
      repeats: timed steps.
      energy_j: joules per step on all devices, by their counters; None without counters.
      notes: caveats, one line each.
      processes: each process's own time; () for one process.
      profile: the step operation by operation; None where it was not profiled.
    """

    device: str
    devices: int
    model: str
    workload: Workload
    step_s: Figure
    repeats: int
    energy_j: Figure | None = None
    notes: tuple[str, ...] = ()
    processes: tuple[ProcessTime, ...] = ()
    profile: OperationProfile | None = None

    @property
    def slowest(self) -> ProcessTime | None:
        """The process with the longest mean time; None for one process."""
        return max(self.processes, key=lambda p: p.step_s.value, default=None)

    @property
    def energy_per_token_j(self) -> Figure | None:
        """The energy per token of a step, in joules."""
        e = self.energy_j
        return e and Figure(e.value / self.workload.tokens, "J", "measured", note=e.note)


@dataclass(frozen=True)
class StrategyResult:
    """The results of all lenses for one strategy; None where a lens did not run.

    `skipped` maps a lens to the reason it did not run, where the strategy is not to blame;
    `refused` maps a lens to the reason this strategy cannot run it. `training` says how it trains;
    None in other phases. `knob` names the changes under which a strategy that does not fit would,
    in words; "" if it fits, or nothing was compiled.
    """

    strategy: dict
    description: str
    verification: Verification | None = None
    compilation: Compilation | None = None
    prediction: Prediction | None = None
    measurement: Measurement | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    training: TrainingFacts | None = None
    knob: str = ""

    @property
    def name(self) -> str:
        return self.strategy["name"]

    @property
    def failed(self) -> bool:
        """Whether it cannot run, is not exact, does not fit, or moves other bytes than derived.

        A named approximation is not a failure.
        """
        v = self.verification
        verified = v is None or v.exact or bool(v.approximation)
        compiled = self.compilation is None or (
            self.compilation.memory.fits and self.compilation.ledger_matches
        )
        return bool(self.refused) or not (verified and compiled)
