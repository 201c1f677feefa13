"""A sketch of a prefill or a decoding step: ticks of layers of kernels, and what travels."""

from dataclasses import dataclass, field

from parallax.cost import Cost, Rates, price, rates_of
from parallax.estimate.halves import (
    cached_attention,
    expert_mlp,
    plain_mlp,
    projections,
    prompt_attention,
)
from parallax.estimate.hits import weight_reads
from parallax.estimate.kernels import gemm, passes
from parallax.estimate.packed_weights import PackedWeights, weights_of
from parallax.estimate.sketch import Sketch
from parallax.hlo.work import Loop, Start, Step, Wait, Work
from parallax.meshes.cluster import Cluster
from parallax.steps import ModelStep, TransformerStep


@dataclass(frozen=True)
class Estimate:
    """A closed form's answer (tag: modelled).

    Attributes:
      cost: of one call on one device.
      tokens: that the call handles, over all devices.
      work: the sketch.
    """

    cost: Cost
    tokens: int
    work: Work = field(repr=False)

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
    """The time of one call of a step.

    Args:
      step: a prefill of the whole batch, or a decoding step.
      cluster: its devices are the mesh's.
      rates: None takes what is shipped for the GPU.
      skew: rows of the busiest expert over the mean, from 1 on: its device is waited for.
      weights: how a layer's matrices are stored; None is as the config says, unpacked by XLA.
      resident: weights that the cache model still finds in the L2 cache from the tick before are
        read from there; otherwise every tick reads all of them from memory, as a compiled
        program is priced.

    Raises:
      ValueError: a shard of a packed weight that is no whole number of runs, groups and bytes;
        a step that has no analytical model, such as a training step or layers in weight tiles.

    Cost: milliseconds; nothing is traced.
    """
    if step.unmodelled:
        raise ValueError(f"estimate: {step.unmodelled}")
    assert isinstance(step, TransformerStep)
    sketch = Sketch(step, skew, weights or weights_of(step.config), cluster.gpu.device_kind)
    work = Work("entry", _steps(sketch), step.strategy.mesh.size)
    rates = rates or rates_of(cluster.gpu.name)
    kept = weight_reads(work, cluster, rates).resident if resident else None
    return Estimate(price(work, cluster, rates, resident=kept), step.tokens, work)


def _steps(sketch: Sketch) -> dict[str, tuple[Step, ...]]:
    walk = sketch.walk
    layer, inner = _layer(sketch)
    layers = Loop("layers", walk.layers, "layer", "test")
    handoff = [x for x in sketch.rare if x[0].what == "stage handoff"]
    beside = [Start(s.name, s) for s in sketch.sends(handoff)] if sketch.overlaps() else []
    rest = [x for x in sketch.rare if not beside or x not in handoff]
    tick: list[Step] = [
        *beside,
        *_start_of_tick(sketch),
        layers,
        *(Wait(s.name) for s in beside),
        *_head(sketch),
        *sketch.sends(rest),
    ]
    return {
        "entry": (Loop("ticks", walk.ticks, "tick", "test"),),
        "tick": tuple(tick), "layer": tuple(layer), "test": (passes("test", 4.0, 1.0),),
        **inner,
    }  # fmt: skip


def _start_of_tick(sketch: Sketch) -> list[Step]:
    share = sketch.residual / sketch.split.count("lookup")
    pipeline = 6 if sketch.split.count("layers") > 1 else 0
    return [passes("embed", share, share),
            *(passes(f"tick.{i}", share, share) for i in range(pipeline)),
            passes("widened", sketch.residual, sketch.residual)]  # fmt: skip


def _head(sketch: Sketch) -> list[Step]:
    b, columns = sketch.walk.b, sketch.config.vocab_size // sketch.split.count("vocab")
    return [passes("last", 3.0 * b * sketch.config.d_model * sketch.item, 0.0),
            gemm("logits", b, columns, sketch.config.d_model, sketch.dtype, sketch.item),
            passes("put", b * columns * sketch.item, b * columns * sketch.item)]  # fmt: skip


def _layer(sketch: Sketch) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
    d, t, item, r = sketch.config.d_model, sketch.tokens, sketch.item, sketch.residual
    q = float(t * sketch.heads * sketch.head_dim * item)
    kv = float(t * sketch.kv_heads * sketch.head_dim * item)
    turned = sketch.walk.b > 1 and not sketch.decoder and sketch.sums()
    # Where nothing is summed over devices, a norm is one kernel and the residual is added in
    # the product before it.
    alone = not sketch.sums()
    rows = [] if alone else [passes("square", r, r / 512), passes("rows", r / 512, r / 8192)]
    steps: list[Step] = [*sketch.sends(sketch.of_layer("gather into attention")), *rows,
                         passes("normed", r, r)]  # fmt: skip
    steps += projections(sketch)
    steps += [passes("even", q / 2, q), passes("odd", q / 2, q), passes("turned q", 2 * q, q),
              passes("k", kv, kv, "k"), passes("v", kv, kv, "v")]  # fmt: skip
    attend = cached_attention if sketch.decoder else prompt_attention
    attention, inner = attend(sketch)
    steps += attention
    steps += sketch.product("out", d, sketch.heads * sketch.head_dim)
    steps += [passes("turn", r, r)] if turned else []
    steps += sketch.sends(sketch.of_layer("sum of attention", "sums of squares"))
    steps += [passes("residual", r, 0.0)] if alone else [passes("add", 2 * r, r), *rows[1:]]
    steps += [passes("normed", r, r), *sketch.sends(sketch.of_layer("gather into MLP"))]
    if sketch.config.num_experts:
        mlp, more = expert_mlp(sketch)
        inner |= more
        steps += mlp
    else:
        steps += plain_mlp(sketch)
    steps += [passes("turn", r, r)] if turned else []
    steps += sketch.sends(sketch.of_layer("sum of MLP"))
    last = passes("residual", r, 0.0) if alone else passes("residual", 2 * r, r)
    return [*steps, last, passes("count", 0.0, 0.0)], inner
