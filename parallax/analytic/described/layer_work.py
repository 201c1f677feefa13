"""The time of one layer's work on one microbatch and device, at the rates of single kernels."""

import math
from collections import Counter
from typing import NamedTuple

from parallax.analytic.described.implementation import ContextScheme
from parallax.analytic.described.layer_sizes import layer_sizes, shard
from parallax.analytic.described.layout import Layout
from parallax.cost.attention import attention_seconds
from parallax.cost.collectives import exchange_seconds, send_seconds
from parallax.cost.gemm import gemm_seconds
from parallax.cost.rates import Rates
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.models.parameters import layer_parameters

_HLO = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64"}


class Bench(NamedTuple):
    """What work is timed on: a cluster, with the rates of its GPUs."""

    cluster: Cluster
    rates: Rates

    def product_seconds(
        self, config: ModelConfig, m: float, n: int, k: int, batch: int = 1, forwards: int = 1
    ) -> float:
        """Return the seconds of batch x [m, k] x [k, n] in a model's dtype, with both gradients."""
        rates = self.rates.gemm_rates(_HLO[config.dtype])
        sms, item, rows = self.cluster.gpu.sm_count, config.item_bytes, math.ceil(m)
        moved = float(item * batch * (rows * k + k * n + rows * n))
        return sum(
            times * gemm_seconds(rates, sms, batch, *sizes, moved)
            for times, sizes in ((forwards, (rows, n, k)), (1, (rows, k, n)), (1, (k, n, rows)))
        )


class LayerWork(NamedTuple):
    """The seconds of a layer, forward and backward, per microbatch and device.

    Attributes:
      products_s, attention_s: matrix products and fused attention.
      tensor_s, context_s, expert_s: collectives over tensor, context and expert ranks.
      collectives: number of collectives over tensor ranks.
    """

    products_s: float
    attention_s: float
    tensor_s: float
    context_s: float
    expert_s: float
    collectives: int


def layer_work(
    config: ModelConfig, layout: Layout, seq_len: int, at: Bench, context: ContextScheme
) -> LayerWork:
    """Estimate the time of the work of one layer of a model.

    Args:
      config: the model; its dense first layers have a config of their own.
      layout: how it is split.
      seq_len: tokens per sequence.
      at: the cluster and the rates.
      context: how ranks of a sequence's parts attend.
    """
    tensor_s, collectives = _tensor(config, layout, seq_len, at)
    return LayerWork(
        _products(config, layout, seq_len, at), _attention(config, layout, seq_len, at), tensor_s,
        _context(config, layout, seq_len, at, context), _experts(config, layout, seq_len, at),
        collectives,
    )  # fmt: skip


def _products(config: ModelConfig, layout: Layout, seq_len: int, at: Bench) -> float:
    """Return the seconds of a layer's products; matrices with one input are one product."""
    sizes = layer_sizes(config, layout, seq_len)
    fused: dict[tuple[str, ...], tuple[float, int, int, int]] = {}
    for p in layer_parameters(config):
        if not p.inputs:
            continue
        k, n, count = p.matrices(shard(p, layout, config))
        is_expert = "expert" in p.axes
        name = (p.path[:-1] if p.reads_stream else p.path) + (("expert",) if is_expert else ())
        m = sizes.expert_rows / count if is_expert else sizes.tokens
        fused[name] = m, n + (fused[name][1] if name in fused else 0), k, count
    return sum(at.product_seconds(config, *each, layout.forwards) for each in fused.values())


def _attention(config: ModelConfig, layout: Layout, seq_len: int, at: Bench) -> float:
    """Return the seconds of a mean layer's attention; ranks of `context` share it evenly."""
    rates, gpu = at.rates, at.cluster.gpu
    shape = {
        "batch": layout.microbatch, "heads": config.num_heads // layout.tensor,
        "kv_heads": max(1, config.num_kv_heads // layout.tensor), "q_len": seq_len,
        "kv_len": seq_len, "head_dim": config.head_dim, "value_dim": config.value_dim,
        "causal": config.causal,
    }  # fmt: skip
    kinds = Counter(config.kinds[i % len(config.kinds)].window for i in range(config.num_layers))
    seconds = sum(
        n * times * attention_seconds(
            rates.attention, gpu.sm_count, rates.memory_bytes_per_s, **shape, window=window,
            backward=backward,
        )
        for window, n in kinds.items()
        for times, backward in ((layout.forwards, False), (1, True))
    )  # fmt: skip
    return seconds / config.num_layers / layout.context


def _tensor(config: ModelConfig, layout: Layout, seq_len: int, at: Bench) -> tuple[float, int]:
    """Return the seconds and the number of collectives over tensor ranks."""
    if layout.tensor == 1:
        return 0.0, 0
    blocks = 2
    if config.num_experts and layout.expert > 1:
        blocks = 1 + (config.shared_experts > 0)
    size = float(layer_sizes(config, layout, seq_len).tokens * config.d_model * config.item_bytes)
    group = layout.group(layout.tensor, 1, at.cluster)
    # One of each per pass; inputs are gathered once more for the gradients of weights.
    passes = layout.forwards + 1
    kinds = {"all-gather": passes + 1, "reduce-scatter": passes}
    if not layout.sequence_parallel:
        kinds = {"all-reduce": passes}
    seconds = sum(n * exchange_seconds(k, size, *group, at.rates) for k, n in kinds.items())
    return blocks * seconds, blocks * sum(kinds.values())


def _context(
    config: ModelConfig, layout: Layout, seq_len: int, at: Bench, scheme: ContextScheme
) -> float:
    """Return the seconds of transfers between ranks that hold parts of a sequence, both passes."""
    if layout.context == 1:
        return 0.0
    tokens = layer_sizes(config, layout, seq_len).tokens * config.item_bytes
    kv_heads = config.num_kv_heads / min(layout.tensor, config.num_kv_heads)
    keys_values = tokens * kv_heads * (config.head_dim + config.value_dim)
    group = layout.group(layout.context, layout.tensor, at.cluster)
    if scheme == "ring":  # keys and values in every pass; with their gradients backward
        link = at.rates.links["p2p" if group.nodes == 1 else "network"]
        hops = (layout.forwards + 2) * (layout.context - 1)
        return hops * send_seconds(link, keys_values)
    heads = config.num_heads / layout.tensor
    sizes = (tokens * heads * config.head_dim + keys_values, tokens * heads * config.value_dim)
    once = sum(exchange_seconds("all-to-all", size, *group, at.rates) for size in sizes)
    return (layout.forwards + 1) * once


def _experts(config: ModelConfig, layout: Layout, seq_len: int, at: Bench) -> float:
    """Return the seconds of rows to experts and back, forward and backward."""
    if layout.expert == 1 or not config.num_experts:
        return 0.0
    size = layer_sizes(config, layout, seq_len).expert_rows * config.d_model * config.item_bytes
    group = layout.group(layout.expert, 1, at.cluster)
    once = 2 * exchange_seconds("all-to-all", size, *group, at.rates)
    return (layout.forwards + 1) * once
