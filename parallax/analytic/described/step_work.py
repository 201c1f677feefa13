"""The work of a described training step per pipeline stage, before an implementation's constants.

A step's time is linear in these numbers and in the constants but for what overlaps, so that a fit
counts the work once.
"""

from collections import defaultdict
from typing import Any, NamedTuple

from parallax.analytic.described.implementation import Implementation
from parallax.analytic.described.layer_sizes import end_sizes, layer_sizes
from parallax.analytic.described.layer_work import Bench, layer_work
from parallax.analytic.described.layout import Layout
from parallax.analytic.described.stages import Stages, place_stages, stage_layers
from parallax.cost.collectives import exchange_seconds, send_seconds
from parallax.models.config import ModelConfig

# Of one stage; a fit stacks the stages of many steps into arrays.
Number = Any
# A 16-bit gradient of a weight is added to a float32 sum.
_SUM_BYTES = 10
# Of a layer's launches, those of the forward pass.
_FORWARD_SHARE = 1 / 3
_TIMES = ("products_s", "attention_s", "tensor_s", "context_s", "expert_s")


class StageWork(NamedTuple):
    """The work of a device of one stage: per microbatch, forward and backward; then per step.

    Attributes:
      products_s, attention_s: seconds of matrix products and fused attention.
      passes_bytes: bytes of elementwise kernels.
      logits: logits whose loss the stage computes.
      layers: layers that the host launches; unembedding and loss are half of one each.
      tensor_layers: the same times tensor ranks, if there are several.
      tensor_s: seconds of collectives over tensor ranks.
      tensor_rounds: ranks of all those that span nodes.
      context_s, expert_s, gather_s: seconds of ring attention's transfers, of rows to experts and
        back, and of weights and gradients that are gathered and scattered in every microbatch.
      handoff_s, handoffs: seconds and number of transfers that it waits for: a microbatch from the
        stage before and a gradient from the one behind. Nobody waits for what it sends.
      reduce_s, gather_weights_s: seconds to sum gradients over data ranks, and to gather weights.
      params, state: parameters, and those whose optimizer state the device has.
    """

    products_s: Number = 0.0
    attention_s: Number = 0.0
    passes_bytes: Number = 0.0
    logits: Number = 0.0
    layers: Number = 0.0
    tensor_layers: Number = 0.0
    tensor_s: Number = 0.0
    tensor_rounds: Number = 0.0
    context_s: Number = 0.0
    expert_s: Number = 0.0
    gather_s: Number = 0.0
    handoff_s: Number = 0.0
    handoffs: Number = 0.0
    reduce_s: Number = 0.0
    gather_weights_s: Number = 0.0
    params: Number = 0.0
    state: Number = 0.0


class _Step(NamedTuple):
    config: ModelConfig
    layout: Layout
    seq_len: int
    at: Bench
    software: Implementation
    stages: Stages

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch on one device."""
        return self.layout.microbatch * self.seq_len // self.layout.context

    @property
    def columns(self) -> int:
        """Columns of the unembedding on one device."""
        return -(-self.config.vocab_size // self.layout.tensor)

    @property
    def stream_bytes(self) -> float:
        """Bytes of the residual stream on one device, between blocks."""
        rows = self.layout.tensor if self.layout.sequence_parallel else 1
        return self.tokens * self.config.d_model * self.config.item_bytes / rows


def step_work(
    config: ModelConfig, layout: Layout, seq_len: int, at: Bench, software: Implementation
) -> tuple[StageWork, ...]:
    """Count the work of each stage.

    Args:
      config, layout, seq_len: the model, how it is split, tokens per sequence.
      at: the cluster and the rates.
      software: where layers are placed, and the bytes of gradients; its other constants do not
        matter.
    """
    stages = place_stages(config, layout.pipeline, software.placement, seq_len)
    step = _Step(config, layout, seq_len, at, software, stages)
    return tuple(_stage(step, s, kinds) for s, kinds in enumerate(stage_layers(config, stages)))


def _stage(step: _Step, s: int, kinds: tuple[tuple[ModelConfig, int], ...]) -> StageWork:
    layout, at = step.layout, step.at
    spans = layout.group(layout.tensor, 1, at.cluster)
    total: dict[str, float] = defaultdict(float)
    for kind, n in kinds:
        work = layer_work(kind, layout, step.seq_len, at, step.software.context)
        sizes = layer_sizes(kind, layout, step.seq_len)
        weights = sizes.dense + sizes.expert
        for name in _TIMES:
            total[name] += n * getattr(work, name)
        total["passes_bytes"] += n * (sizes.moved * kind.item_bytes + weights * _SUM_BYTES)
        total["tensor_rounds"] += n * work.collectives * (spans.size if spans.nodes > 1 else 0)
        total["depth"] += n
        total["layers"] += n * (1 + _FORWARD_SHARE * (layout.forwards - 1))
        for part in ("dense", "expert"):
            total[part] += n * getattr(sizes, part)
    _add_ends(total, step, s)
    _add_sums(total, step)
    if step.config.tie_embeddings and step.stages.head > 0 and s in (0, step.stages.head):
        crosses = any(layout.between_nodes(t, at.cluster) for t in range(step.stages.head))
        size = step.columns * step.config.d_model * step.software.gradient_bytes
        total["reduce_s"] += exchange_seconds(
            "all-reduce", size, *((1, 2) if crosses else (2, 1)), at.rates
        )
    for t in (s - 1, s):
        if 0 <= t < layout.pipeline - 1:
            total["handoff_s"] += layout.interleaved * _handoff(step, t)
            total["handoffs"] += layout.interleaved
    total["tensor_layers"] = total["layers"] * (layout.tensor if layout.tensor > 1 else 0)
    return StageWork(**{name: total[name] for name in StageWork._fields})


def _add_ends(total: dict[str, float], step: _Step, s: int) -> None:
    """Add embedding, unembedding and loss where a stage has them."""
    config, layout, stages = step.config, step.layout, step.stages
    first, last = end_sizes(config, layout, stages)
    group = layout.group(layout.tensor, 1, step.at.cluster)
    size = step.tokens * config.d_model * config.item_bytes
    kinds = ("all-gather", "reduce-scatter") if layout.sequence_parallel else ("all-reduce",) * 2
    gather, scatter = (exchange_seconds(kind, size, *group, step.at.rates) for kind in kinds)
    if s == 0:
        total["dense"] += first
        total["passes_bytes"] += first * _SUM_BYTES + 3 * step.stream_bytes
        total["tensor_s"] += gather + scatter
    if s == stages.head:
        total["products_s"] += step.at.product_seconds(
            config, step.tokens, step.columns, config.d_model
        )
        total["tensor_s"] += 2 * gather + scatter
        total["dense"] += last
        total["passes_bytes"] += last * _SUM_BYTES + 5 * step.stream_bytes
        total["layers"] += 0.5
    if s == stages.loss:
        total["logits"] += step.tokens * step.columns
        total["layers"] += 0.5


def _handoff(step: _Step, s: int) -> float:
    """Return the seconds of a microbatch from stage s to the next, or of its gradient back."""
    is_logits = step.stages.head <= s < step.stages.loss
    logits = step.tokens * step.columns * step.config.item_bytes
    network = step.layout.between_nodes(s, step.at.cluster)
    link = step.at.rates.links["network" if network else "p2p"]
    return send_seconds(link, logits if is_logits else step.stream_bytes)


def _add_sums(total: dict[str, float], step: _Step) -> None:
    """Add parameters, sums of their gradients, gathers of weights and the optimizer's share."""
    layout, at, item = step.layout, step.at, step.config.item_bytes
    wide = step.software.gradient_bytes
    ranks = {"dense": (layout.replicas, layout.tensor)}
    ranks["expert"] = layout.expert_replicas, max(layout.tensor, layout.expert)
    for part, (replicas, stride) in ranks.items():
        params = total[part]
        group = layout.group(replicas, stride, at.cluster)
        total["params"] += params
        total["state"] += params / (replicas if layout.zero else 1)
        if not params or replicas == 1:
            continue
        if layout.zero == 0:
            total["reduce_s"] += exchange_seconds("all-reduce", params * wide, *group, at.rates)
            continue
        # Weights that are sharded travel layer by layer, others at once.
        pieces = max(1.0, total["depth"]) if layout.zero == 3 else 1.0
        scatter, gather = (
            pieces * exchange_seconds(kind, params / pieces * each, *group, at.rates)
            for kind, each in (("reduce-scatter", wide), ("all-gather", item))
        )
        if layout.zero < 3:
            total["reduce_s"] += scatter
            total["gather_weights_s"] += gather
        else:
            total["gather_s"] += 2 * gather + scatter
