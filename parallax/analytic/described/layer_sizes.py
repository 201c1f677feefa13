"""The sizes of a layer and of a model's ends per device: parameters, rows, what moves and stays."""

import functools
import math
from typing import NamedTuple

from parallax.analytic.described.layout import Layout
from parallax.analytic.described.stages import Stages
from parallax.models.config import ModelConfig
from parallax.models.parameters import FIRST_LAYERS, Parameter, end_parameters, layer_parameters

_TENSOR = {"heads", "mlp", "vocab", "lookup"}


class LayerSizes(NamedTuple):
    """The sizes of a layer per microbatch and device.

    Attributes:
      tokens: tokens of the device's part of the sequences.
      stream: elements of the residual stream that it holds between blocks.
      expert_rows: rows that its experts multiply; 0 without experts.
      dense, expert: its parameters outside and inside experts.
      moved: elements that fused elementwise kernels read and write, forward and backward.
      kept: elements that fused kernels keep for the backward pass.
    """

    tokens: int
    stream: float
    expert_rows: float
    dense: float
    expert: float
    moved: float
    kept: float


def shard(p: Parameter, layout: Layout, config: ModelConfig) -> tuple[int, ...]:
    """Return the shape of a parameter's part on one device, gathered over data ranks."""
    whole_experts = "expert" in p.axes and layout.expert > 1
    shape = []
    for size, axis in zip(p.shape, p.axes, strict=True):
        names = {axis} if isinstance(axis, str) else set(axis or ())
        by = 1
        if "expert" in names:
            by = layout.expert
        elif "kv_heads" in names:
            by = min(layout.tensor, config.num_kv_heads)
        elif names & _TENSOR and not whole_experts:
            by = layout.tensor
        shape.append(-(-size // by))
    return tuple(shape)


@functools.lru_cache(maxsize=1024)
def layer_sizes(config: ModelConfig, layout: Layout, seq_len: int) -> LayerSizes:
    """Count the sizes of one layer of a model.

    Args:
      config: the model; its dense first layers have a config of their own.
      layout: how it is split.
      seq_len: tokens per sequence.
    """
    tokens = layout.microbatch * seq_len // layout.context
    stream = tokens * config.d_model / (layout.tensor if layout.sequence_parallel else 1)
    split = layout.tensor if layout.expert > 1 else 1
    rows = tokens * config.experts_per_token / split if config.num_experts else 0.0
    sizes = {p: math.prod(shard(p, layout, config)) for p in layer_parameters(config)}
    expert = float(sum(n for p, n in sizes.items() if "expert" in p.axes))
    dense = float(sum(sizes.values())) - expert

    heads = config.num_heads / layout.tensor
    kv_heads = config.num_kv_heads / min(layout.tensor, config.num_kv_heads)
    query, keys = (tokens * n * config.head_dim for n in (heads, kv_heads))
    out, values = (tokens * n * config.value_dim for n in (heads, kv_heads))
    rotated = query + keys if config.positions == "rope" else 0.0
    width = config.d_ff / (1 if layout.expert > 1 and rows else layout.tensor)
    hidden = width * (rows or tokens)
    hidden += tokens * config.shared_experts * config.d_ff / layout.tensor
    norms = 4 if config.norms == "both" else 2
    # Read and written in a forward and in the backward pass: per norm 2 and 3, per residual sum 3
    # and 3, per rotation 2 and 2; gates 3 and 5, GELU 2 and 3; rows to experts and back 4 and 4.
    gated = config.mlp == "gated"
    forward = (2 * norms + 6) * stream + 2 * rotated + (3 if gated else 2) * hidden
    backward = (3 * norms + 6) * stream + 2 * rotated + (5 if gated else 3) * hidden
    moved = layout.forwards * forward + backward
    moved += 4 * (layout.forwards + 1) * rows * config.d_model
    # Inputs and results of norms; queries, keys, values and attention's result; the MLP's.
    kept = 2 * norms * stream + query + keys + values + out + 2 * rows * config.d_model
    kept += (3 if gated else 2) * hidden
    return LayerSizes(tokens, stream, rows, dense, expert, moved, kept)


def end_sizes(config: ModelConfig, layout: Layout, stages: Stages) -> tuple[float, float]:
    """Count the parameters per device of the embedding, and of the last norm and unembedding.

    A tied table counts once more where the unembedding is on another stage.
    """
    sizes = {"first": 0.0, "last": 0.0}
    for p in end_parameters(config):
        if p.path[0] != FIRST_LAYERS:
            is_table = not p.inputs and len(p.shape) > 1
            sizes["first" if is_table else "last"] += math.prod(shard(p, layout, config))
    if config.tie_embeddings and stages.head > 0:
        sizes["last"] += -(-config.vocab_size // layout.tensor) * config.d_model
    return sizes["first"], sizes["last"]
