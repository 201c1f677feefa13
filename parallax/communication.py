"""Closed form of a strategy's forward communication: the pieces of `bounds`, put together.

It walks the model as the manual map does: tables, attention, the two contractions of a block,
handoffs, last position. The compiled ledger must equal it, collective by collective.
Shapes: b sequences of a microbatch on one device, L tokens, D model width.
"""

import dataclasses

from parallax.bounds import Transfer, transfer
from parallax.models.block import attention_shape
from parallax.models.config import ITEM_BYTES, ModelConfig
from parallax.parallel.split import Split
from parallax.strategy import Strategy
from parallax.workload import Workload


def forward_transfers(
    config: ModelConfig, strategy: Strategy, workload: Workload
) -> tuple[Transfer, ...]:
    """What one forward pass to last-position logits sends.

    Args:
      config: the model at its real size.
      strategy: any whose parts have closed forms.
      workload: with this strategy's microbatches.

    Returns:
      One Transfer a purpose, bytes leaving a device over the whole pass. `minimum_bytes` leaves out
      what pipeline bubbles repeat.
    """
    split = strategy.split()
    stages = split.count("layers")
    ticks = strategy.layers.ticks(workload.microbatches, stages)
    layers = config.num_layers // stages
    b = workload.batch // split.count("act_batch") // workload.microbatches
    item = config.item_bytes
    residual = b * workload.seq_len * config.d_model // split.count("act_seq")
    useful = workload.microbatches

    found: list[Transfer] = []

    def add(what, kind, axes, payload_bytes, count, needed):
        if axes:
            size = _size(split, axes)
            found.append(transfer(what, kind, axes, size, payload_bytes, count, needed))

    lookup = split.over("lookup")
    add("widen embeddings and handoffs", "all-gather", lookup, residual * item, ticks, useful)

    shape = attention_shape(config, split, b, workload.seq_len, packed=workload.packed)
    if config.qk_norm:
        heads = shape.heads + config.num_kv_heads // split.count("kv_heads")
        squares = residual // config.d_model * heads * shape.accumulator_bytes
        add("sums of squares of queries and keys", "all-reduce", split.over("head_dim"), squares,
            ticks * layers, useful * layers)  # fmt: skip
    for t in strategy.attention.transfers(shape, strategy.mesh_axes, ticks * layers):
        minimum = t.minimum_bytes * useful / ticks
        found.append(dataclasses.replace(t, minimum_bytes=minimum))

    norm_seq = split.over("act_norm_seq")
    wire_item = item if split.reduce_dtype is None else ITEM_BYTES[split.reduce_dtype]
    for what, names in (("attention", ("heads", "head_dim")), ("MLP", ("mlp",))):
        axes = split.over(*names)
        calls = (ticks * layers, useful * layers)
        if norm_seq and norm_seq == axes:
            add(f"gather into {what}", "all-gather", axes, residual * item, *calls)
            add(f"sum of {what}", "reduce-scatter", axes, residual * wire_item, *calls)
        else:
            add(f"sum of {what}", "all-reduce", axes, residual * wire_item, *calls)

    stage = split.over("layers")
    handoff = residual * item // split.count("lookup") // split.count("act_norm_seq")
    add("stage handoff", "collective-permute", stage, handoff, ticks, useful)

    last = split.over("act_seq", "act_norm_seq")
    add("last position", "all-reduce", last, b * config.d_model * item, ticks, useful)
    add("last stage's result", "all-reduce", stage,
        b * workload.microbatches * config.d_model * item, 1, 1)  # fmt: skip
    return tuple(found)


def kv_cache_bytes(config: ModelConfig, workload: Workload, devices: int) -> float:
    """Bytes a device of the run's whole KV cache, spread evenly."""
    row = 2 * config.num_kv_heads * config.head_dim * config.num_layers * config.item_bytes
    return workload.tokens * row / devices


def full_attention_flops(config: ModelConfig, workload: Workload, devices: int) -> float:
    """FLOPs a device of all layers' attention without a mask, spread evenly."""
    heads = config.num_heads * config.head_dim * config.num_layers
    return 4.0 * workload.batch * workload.seq_len**2 * heads / devices


def _size(split: Split, axes: tuple[str, ...]) -> int:
    size = 1
    for axis in axes:
        size *= split.mesh_axes[axis]
    return size
