"""The time of one layer's work on one microbatch and device, at the rates of single kernels."""

import functools
import math
from typing import NamedTuple

from parallax.analytic.described.layer_sizes import layer_sizes, shard
from parallax.analytic.described.layout import Layout
from parallax.cost.collectives import exchange_seconds, send_seconds
from parallax.cost.gemm import GemmRates, gemm_seconds
from parallax.cost.rates import Rates
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.models.flops import attention_flops
from parallax.models.parameters import layer_parameters

_HLO = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64"}
# FLOPs of fused attention's backward pass over the forward pass's: scores again, four products.
_BACKWARD_FLOPS = 2.5


class Bench(NamedTuple):
    """What work is timed on: a cluster, with the rates of its GPUs."""

    cluster: Cluster
    rates: Rates

    def product_seconds(self, config: ModelConfig, m: float, n: int, k: int, batch: int = 1):
        """Return the seconds of batch x [m, k] x [k, n] in a model's dtype, forward and backward."""
        rates = self.rates.gemm_rates(_HLO[config.dtype])
        sms, item = self.cluster.gpu.sm_count, config.item_bytes
        return _product(rates, sms, item, batch, math.ceil(m), n, k)


@functools.lru_cache(maxsize=65536)
def _product(
    rates: GemmRates, sms: int, item: int, batch: int, m: int, n: int, k: int
) -> float:
    moved = float(item * batch * (m * k + k * n + m * n))
    return sum(
        gemm_seconds(rates, sms, batch, *sizes, moved)
        for sizes in ((m, n, k), (m, k, n), (k, n, m))
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


def layer_work(config: ModelConfig, layout: Layout, seq_len: int, at: Bench) -> LayerWork:
    """Estimate the time of the work of one layer of a model.

    Args:
      config: the model; its dense first layers have a config of their own.
      layout: how it is split.
      seq_len: tokens per sequence.
      at: the cluster and the rates.
    """
    tensor_s, collectives = _tensor(config, layout, seq_len, at)
    return LayerWork(
        _products(config, layout, seq_len, at), _attention(config, layout, seq_len, at), tensor_s,
        _context(config, layout, seq_len, at), _experts(config, layout, seq_len, at), collectives,
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
    return sum(at.product_seconds(config, *each) for each in fused.values())


def _attention(config: ModelConfig, layout: Layout, seq_len: int, at: Bench) -> float:
    flops = attention_flops(config, layout.microbatch, seq_len) / config.num_layers
    flops /= layout.tensor * layout.context
    width = max(config.head_dim, config.value_dim)
    widths = sorted(map(int, at.rates.attention_flops_per_s))
    fitting = next((w for w in widths if w >= width), widths[-1])
    return flops * (1 + _BACKWARD_FLOPS) / at.rates.attention_flops_per_s[str(fitting)]


def _tensor(
    config: ModelConfig, layout: Layout, seq_len: int, at: Bench
) -> tuple[float, int]:
    """Return the seconds and the number of collectives over tensor ranks."""
    if layout.tensor == 1:
        return 0.0, 0
    blocks = 2
    if config.num_experts and layout.expert > 1:
        blocks = 1 + (config.shared_experts > 0)
    size = float(layer_sizes(config, layout, seq_len).tokens * config.d_model * config.item_bytes)
    group = layout.group(layout.tensor, 1, at.cluster)
    # Forward and backward; inputs are gathered again for the gradients of weights.
    gathers = {"all-gather": 3, "reduce-scatter": 2}
    kinds = gathers if layout.sequence_parallel else {"all-reduce": 2}
    seconds = sum(n * exchange_seconds(k, size, *group, at.rates) for k, n in kinds.items())
    return blocks * seconds, blocks * sum(kinds.values())


def _context(config: ModelConfig, layout: Layout, seq_len: int, at: Bench) -> float:
    """Return the seconds of keys and values around a ring, and again with their gradients."""
    if layout.context == 1:
        return 0.0
    heads = config.num_kv_heads / min(layout.tensor, config.num_kv_heads)
    size = layer_sizes(config, layout, seq_len).tokens * config.item_bytes
    size *= heads * (config.head_dim + config.value_dim)
    group = layout.group(layout.context, layout.tensor, at.cluster)
    link = at.rates.links["p2p" if group.nodes == 1 else "network"]
    return 3 * (layout.context - 1) * send_seconds(link, size)


def _experts(config: ModelConfig, layout: Layout, seq_len: int, at: Bench) -> float:
    """Return the seconds of rows to experts and back, forward and backward."""
    if layout.expert == 1 or not config.num_experts:
        return 0.0
    size = layer_sizes(config, layout, seq_len).expert_rows * config.d_model * config.item_bytes
    group = layout.group(layout.expert, 1, at.cluster)
    return 4 * exchange_seconds("all-to-all", size, *group, at.rates)
