"""The estimate of a step; of a prefill or decoding, its trace: ticks of layers of kernels."""

from dataclasses import dataclass, field

from parallax.analytic.hits import weight_reads
from parallax.analytic.kernels import gemm, passes
from parallax.analytic.layer import layer_steps
from parallax.analytic.packed_weights import PackedWeights, weights_of
from parallax.analytic.places import check_sent_once
from parallax.analytic.single_kinds import single_kinds
from parallax.analytic.trace import Trace
from parallax.analytic.train_trace import TrainTrace
from parallax.analytic.training import train_steps
from parallax.cost import Cost, Rates, estimate_cost, rates_for
from parallax.hlo.execution_trace import ExecutionTrace, Loop, Start, Step, Wait
from parallax.meshes.cluster import Cluster
from parallax.programs.steps import ModelStep, Training, TransformerStep


@dataclass(frozen=True)
class Estimate:
    """The analytical model's estimate of a step (tag: modelled).

    Attributes:
      cost: cost of one call on one device.
      tokens: tokens that the call handles, over all devices.
      work: the synthetic trace; of layers of several kinds, that of the most frequent one.
    """

    cost: Cost
    tokens: int
    work: ExecutionTrace = field(repr=False)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.cost.seconds


def estimate(
    step: ModelStep,
    cluster: Cluster,
    *,
    rates: Rates | None = None,
    skew: float = 1.0,
    weights: PackedWeights | None = None,
    resident: bool = False,
) -> Estimate:
    """Estimate the time of one call of a step by the analytical model.

    Args:
      step: a prefill of the whole batch, a decoding step, or a training step.
      cluster: the GPUs; as many devices as the mesh has.
      rates: cost model constants; None uses those shipped for the GPU.
      skew: rows of the busiest expert over the mean, at least 1: the others wait for its device.
      weights: how a layer's matrices are stored; None is as the config says, unpacked by XLA or,
        in a decoding step whose strategy enables it, by our kernel.
      resident: whether weights that the cache model still finds in the L2 cache from the previous
        tick are read from there; otherwise every tick reads all of them from memory, as in the
        estimate of a compiled program.

    Raises:
      ValueError: a shard of a packed weight is not a whole number of runs, groups and bytes, or the
        step has no analytical model, such as layers in weight tiles.

    Cost: milliseconds; nothing is traced.
    """
    if step.unmodelled:
        raise ValueError(f"estimate: {step.unmodelled}")
    assert isinstance(step, TransformerStep)
    singles = single_kinds(step)
    if len(singles) > 1:
        found = [
            estimate(one, cluster, rates=rates, skew=skew, weights=weights, resident=resident)
            for _, one in singles
        ]
        cost = sum((e.cost.times(f) for (f, _), e in zip(singles, found, strict=True)), Cost())
        return Estimate(cost, step.tokens, found[0].work)
    args = skew, weights or weights_of(step.config), cluster.gpu.device_kind
    if isinstance(step, Training):
        steps = train_steps(TrainTrace(step, *args))
    else:
        trace = Trace(step, *args)
        steps = _steps(trace)
        check_sent_once(steps, trace.transfers)
    work = ExecutionTrace("entry", steps, step.strategy.mesh.size)
    rates = rates_for(cluster, rates)
    kept = weight_reads(work, cluster, rates).resident if resident else None
    return Estimate(estimate_cost(work, cluster, rates, resident=kept), step.tokens, work)


def _steps(trace: Trace) -> dict[str, tuple[Step, ...]]:
    walk = trace.walk
    layer, inner = layer_steps(trace)
    layers = Loop("layers", walk.layers, "layer", "test")
    beside = [Start(s.name, s) for s in trace.sends("handoff")] if trace.overlaps() else []
    tick: list[Step] = [
        *beside,
        *_start_of_tick(trace),
        layers,
        *(Wait(s.name) for s in beside),
        *_head(trace),
        *(trace.sends("tick") if beside else trace.sends("tick", "handoff")),
    ]
    return {
        "entry": (*trace.sends("start"), Loop("ticks", walk.ticks, "tick", "test")),
        "tick": tuple(tick), "layer": tuple(layer), "test": (passes("test", 4.0, 1.0),),
        **inner,
    }  # fmt: skip


def _start_of_tick(trace: Trace) -> list[Step]:
    share = trace.residual / trace.split.count("lookup")
    pipeline = 6 if trace.split.count("layers") > 1 else 0
    return [passes("embed", share, share),
            *(passes(f"tick.{i}", share, share) for i in range(pipeline)),
            passes("widened", trace.residual, trace.residual)]  # fmt: skip


def _head(trace: Trace) -> list[Step]:
    b, columns = trace.walk.b, trace.config.vocab_size // trace.split.count("vocab")
    return [passes("last", 3.0 * b * trace.config.d_model * trace.item, 0.0),
            gemm("logits", b, columns, trace.config.d_model, trace.dtype, trace.item),
            passes("put", b * columns * trace.item, b * columns * trace.item)]  # fmt: skip
