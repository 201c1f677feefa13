"""The memory per device of a described training step, on its fullest stage."""

from typing import Any, NamedTuple

from parallax.analytic.described.implementation import Implementation
from parallax.analytic.described.layer_sizes import end_sizes, layer_sizes
from parallax.analytic.described.layout import Layout
from parallax.analytic.described.stages import Stages, place_stages, stage_layers
from parallax.models.config import ModelConfig

_GATHERED_LAYERS = 2  # of weights sharded over data: the one in use and the next


class DescribedMemory(NamedTuple):
    """The bytes per device of a training step, by purpose (tag: modelled).

    Attributes:
      parameters: weights between steps, and those gathered for use.
      gradients: their sums over microbatches, and buffers in which they are moved.
      optimizer: moments and master weights.
      activations: what layers of the microbatches in flight keep for their backward pass.
      logits: the loss at its peak, and the unembedding's new gradient beside its sum.
      fixed: driver, libraries and buffers of collectives, if the software's figure counts them.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    fixed: float

    @property
    def total(self) -> float:
        return sum(self)


class StageMemory(NamedTuple):
    """Numbers of elements that a device of a stage holds; a fit stacks stages into arrays.

    Attributes:
      weights, gradients, state: parameters whose weights, gradient sums and optimizer state it has.
      kept: elements that layers of the microbatches in flight keep, by fused kernels.
      gathered: elements of the residual stream of these layers that other tensor ranks hold.
      logits: logits of a microbatch.
      unembedding: parameters of the unembedding.
    """

    weights: Any
    gradients: Any
    state: Any
    kept: Any
    gathered: Any
    logits: Any
    unembedding: Any


def train_memory(
    config: ModelConfig, layout: Layout, seq_len: int, software: Implementation
) -> DescribedMemory:
    """Estimate the bytes per device of the fullest stage.

    Args:
      config: the model.
      layout: how it is split and batched.
      seq_len: tokens per sequence.
      software: what runs it.
    """
    stages = stage_memory(config, layout, seq_len, software)
    made = (memory_of(stage, software, config.item_bytes) for stage in stages)
    return max(made, key=lambda memory: memory.total)


def memory_of(stage: StageMemory, software: Implementation, item: int) -> DescribedMemory:
    """Combine a stage's elements with an implementation's constants and bytes per element."""
    return DescribedMemory(
        stage.weights * item,
        stage.gradients * software.gradient_bytes + stage.weights * software.buffer_bytes,
        stage.state * software.state_bytes,
        (stage.kept * software.kept + stage.gathered * software.kept_gathered) * item,
        stage.logits * software.kept_logit_bytes + stage.unembedding * item, software.fixed_bytes,
    )  # fmt: skip


def stage_memory(
    config: ModelConfig, layout: Layout, seq_len: int, software: Implementation
) -> tuple[StageMemory, ...]:
    """Count the elements of each stage; arguments as of `train_memory`."""
    stages = place_stages(config, layout.pipeline, software.placement, seq_len)
    kinds = stage_layers(config, stages)
    return tuple(_stage(config, layout, seq_len, stages, s, kinds[s]) for s in range(len(kinds)))


def _stage(
    config: ModelConfig, layout: Layout, seq_len: int, stages: Stages, s: int,
    kinds: tuple[tuple[ModelConfig, int], ...],
) -> StageMemory:  # fmt: skip
    sizes = [(layer_sizes(kind, layout, seq_len), n) for kind, n in kinds]
    columns = -(-config.vocab_size // layout.tensor)
    first, last = end_sizes(config, layout, stages)
    ends = first * (s == 0) + last * (s == stages.head)
    parts = (
        (sum(n * z.dense for z, n in sizes) + ends, layout.replicas),
        (sum(n * z.expert for z, n in sizes), layout.expert_replicas),
    )
    weights, gradients, state = (
        sum(params / (ranks if layout.zero >= least else 1) for params, ranks in parts)
        for least in (3, 2, 1)
    )
    if layout.zero == 3:
        layers = max(1, sum(stages.layers))
        weights += min(_GATHERED_LAYERS, layers) * max(z.dense + z.expert for z, _ in sizes)
    tokens = layout.microbatch * seq_len // layout.context
    # A recomputed layer keeps its input, and all its parts only while its gradients are computed.
    again, live = layout.recompute == "layer", in_flight(layout, s)
    kept = live * sum(n * (size.stream if again else size.kept) for size, n in sizes)
    kept += max((size.kept for size, _ in sizes), default=0.0) if again else 0.0
    others = tokens * config.d_model - sizes[0][0].stream if sizes else 0.0
    gathered = others * (1 if again else live * stages.layers[s])
    logits = float(tokens * columns) if s in (stages.head, stages.loss) else 0.0
    unembedding = float(columns * config.d_model) if s == stages.head else 0.0
    return StageMemory(weights, gradients, state, kept, gathered, logits, unembedding)


def in_flight(layout: Layout, stage: int) -> float:
    """Return the most microbatches whose activations a stage of a 1F1B pipeline holds.

    Interleaved stages hold chunks of later microbatches too: 2 (S - s - 1) + (v - 1) S + 1 chunks
    of v (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters", 2021).
    """
    stages, chunks = layout.pipeline, layout.interleaved
    if chunks == 1:
        return float(min(layout.microbatches, stages - stage))
    held = 2 * (stages - stage - 1) + (chunks - 1) * stages + 1
    return min(layout.microbatches * chunks, held) / chunks
