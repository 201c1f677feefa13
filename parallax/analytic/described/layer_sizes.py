"""The sizes of one layer on one microbatch and device: parameters, rows, elements moved and kept."""

import functools
import math
from typing import NamedTuple

from parallax.analytic.described.layout import Layout
from parallax.models.config import ModelConfig
from parallax.models.parameters import Parameter, layer_parameters

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
    # Read and written: per norm 2 forward and 3 backward; per residual sum 3 and 3; per rotation
    # 2 and 2; a gate 3 and 5, GELU 2 and 3; rows to experts and back 4 and 4.
    moved = (5 * norms + 12) * stream + 4 * rotated + 8 * rows * config.d_model
    moved += (8 if config.mlp == "gated" else 5) * hidden
    # Inputs and results of norms; queries, keys, values and attention's result; the MLP's.
    kept = 2 * norms * stream + query + keys + values + out + 2 * rows * config.d_model
    kept += (3 if config.mlp == "gated" else 2) * hidden
    return LayerSizes(tokens, stream, rows, dense, expert, moved, kept)
