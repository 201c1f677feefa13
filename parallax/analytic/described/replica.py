"""One copy of a model as serving software runs it: the cost of a pass, bytes of weights and cache.

Products that read one input are one product, elementwise work is fused, attention is a library's,
and a step is one CUDA graph. T tokens (rows) of a step, D model width.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from parallax.analytic.kernels import gemm
from parallax.bounds import wire_bytes
from parallax.cost import Cost, Rates
from parallax.cost.attention import attention_seconds
from parallax.cost.collectives import (
    exchange_seconds,
    one_shot_all_reduce_seconds,
    send_seconds,
)
from parallax.cost.estimating import kernel_cost
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.models.layer_kinds import LayerKind
from parallax.models.parameters import Parameter, layer_parameters

_HLO = {"bfloat16": "bf16", "float16": "f16"}
# Largest array that the all-reduce over peer memory takes, in vLLM and SGLang; NCCL's beyond.
_ONE_SHOT_BYTES = 8 * 2**20
_SHARDED = {"heads", "kv_heads", "mlp", "vocab"}
_STREAM_PASSES = 8  # of T x D per layer: two norms read and written, two sums read twice, written


@dataclass(frozen=True)
class Replica:
    """A model split over the devices that serve it together.

    Attributes:
      config: the model.
      tensor, pipeline: degrees; layers are split into `pipeline` stages of `tensor` devices each.
      cluster: the GPUs.
      rates: cost model constants of the GPU.
    """

    config: ModelConfig
    tensor: int
    pipeline: int
    cluster: Cluster
    rates: Rates
    _known: dict[tuple[int, int], Cost] = field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def weight_bytes(self) -> float:
        """The bytes of weights on one device: a stage's layers, and one of the tables."""
        whole = sum(n * layer_bytes(c, self.tensor) for c, n in self._stacks) / self.pipeline
        tables = 1 if self.pipeline > 1 or self.config.tie_embeddings else 2
        columns = math.ceil(self.config.vocab_size / self.tensor)
        return whole + tables * columns * self.config.d_model * self.config.item_bytes

    def cache_bytes(self, tokens: float) -> float:
        """Return the bytes of KV cache of one sequence of `tokens` on one device."""
        config, seen = self.config, 0.0
        for kind, layers in self._kinds():
            seen += layers * (tokens if kind.window is None else min(tokens, kind.window))
        heads = math.ceil(config.num_kv_heads / self.tensor)
        width = heads * (config.head_dim + config.value_dim)
        if config.latent is not None:  # one latent for all heads, on every device
            width = config.latent.cached
        return seen * width * config.item_bytes / self.pipeline

    def forward(self, rows: int, logits: int) -> Cost:
        """Estimate one pass of `rows` tokens through all stages, without attention.

        Args:
          rows: tokens, of all sequences together.
          logits: rows that have logits, on every device of the last stage.
        """
        if (rows, logits) not in self._known:
            cost = sum((self._layer(c, rows).times(n) for c, n in self._stacks), Cost())
            cost += self._handoffs(rows) + self._head(logits)
            self._known[rows, logits] = cost
        return self._known[rows, logits]

    def decode_attention(self, batch: int, context: int) -> Cost:
        """Estimate the attention of a new token of `batch` sequences to its context, all layers."""
        cost = Cost()
        for kind, layers in self._kinds():
            seen = context if kind.window is None else min(context, kind.window)
            cost += self._attention(batch, 1, max(1, seen), 1.0).times(layers)
        return cost

    def prompt_attention(self, prompt_len: int) -> Cost:
        """Estimate the attention of a whole prompt, in all layers."""
        cost = Cost()
        for kind, layers in self._kinds():
            visible = 1.0
            if kind.window is not None and kind.window < prompt_len:
                # Of the pairs under the diagonal, those within the window.
                visible = kind.window * (2 * prompt_len - kind.window) / prompt_len**2
            cost += self._attention(1, prompt_len, prompt_len, visible).times(layers)
        return cost

    def _kinds(self) -> Iterator[tuple[LayerKind, int]]:
        kinds, layers = self.config.kinds, self.config.num_layers
        for i, kind in enumerate(kinds):
            yield kind, len(range(i, layers, len(kinds)))

    def _attention(self, batch: int, q_len: int, kv_len: int, visible: float) -> Cost:
        """Estimate a layer's causal attention, of whose pairs a share `visible` is computed."""
        config, item, decodes = self.config, self.config.item_bytes, q_len == 1
        heads = config.num_heads // self.tensor
        kv_heads, width = math.ceil(config.num_kv_heads / self.tensor), config.head_dim
        multiplied = config.head_dim + config.value_dim
        if config.latent is not None and decodes:  # one head of latents, which are values too
            kv_heads, width = 1, math.ceil(config.latent.cached / 2)
            multiplied = config.latent.cached + config.latent.kv_rank
        gpu, rates = self.cluster.gpu, self.rates
        seconds = attention_seconds(
            rates.attention, gpu.sm_count, rates.memory_bytes_per_s, batch=batch, heads=heads,
            kv_heads=kv_heads, q_len=q_len, kv_len=kv_len, head_dim=width, causal=True,
        )  # fmt: skip
        pairs = batch * kv_len * (1 if decodes else q_len / 2)
        flops = 2.0 * pairs * heads * multiplied * visible
        seconds = max(seconds * visible, flops / rates.attention.flops_per_s(config.head_dim))
        n_bytes = float(2 * width * item * batch * (heads * q_len + kv_heads * kv_len))
        return Cost(seconds, {"attention": seconds}, flops=flops, memory_bytes=n_bytes)

    @functools.cached_property
    def _stacks(self) -> tuple[tuple[ModelConfig, int], ...]:
        """The models whose layers are all alike, and how many layers of each there are."""
        config = self.config
        alike = (config.replace(dense_layers=0, dense_d_ff=0), config.stacked_layers)
        first = ((config.of_dense_layers, config.dense_layers),) if config.dense_layers else ()
        return alike, *first

    def _layer(self, config: ModelConfig, rows: int) -> Cost:
        cost = Cost()
        for product in products(config, self.tensor):
            cost += self._product(product, rows)
        reduced = self._reduced(float(rows * config.d_model * config.item_bytes))
        n_bytes = _elements(config, rows, self.tensor) * config.item_bytes
        seconds = n_bytes / self.rates.memory_bytes_per_s
        passes = Cost(seconds, {"memory": seconds}, memory_bytes=n_bytes)
        return cost + passes + reduced.times(2)

    def _product(self, product: "Product", rows: int) -> Cost:
        count, m = 1, rows
        if product.experts:
            chosen = rows * product.per_token
            used = product.experts * (1 - (1 - product.per_token / product.experts) ** rows)
            count = max(1, round(used))
            m = math.ceil(chosen / count)
        kernel = gemm("w", m, product.n, product.k, _HLO[self.config.dtype],
                      self.config.item_bytes, batch=count)  # fmt: skip
        return kernel_cost(kernel, self.cluster.gpu.sm_count, self.rates)

    def _reduced(self, size: float) -> Cost:
        """Estimate an all-reduce of `size` bytes over the tensor devices."""
        n, per_node = self.tensor, self.cluster.gpus_per_node
        if n == 1:
            return Cost()
        if n <= per_node and size <= _ONE_SHOT_BYTES:
            seconds = one_shot_all_reduce_seconds(size, n, self.rates)
        else:
            inside = min(n, per_node)
            seconds = exchange_seconds("all-reduce", size, inside, n // inside, self.rates)
        return _sent(seconds, wire_bytes("all-reduce", n, size))

    def _handoffs(self, rows: int) -> Cost:
        if self.pipeline == 1:
            return Cost()
        inside = self.tensor * self.pipeline <= self.cluster.gpus_per_node
        size = float(rows * self.config.d_model * self.config.item_bytes)
        link = self.rates.links["p2p" if inside else "network"]
        return _sent(send_seconds(link, size), size).times(self.pipeline - 1)

    def _head(self, logits: int) -> Cost:
        config = self.config
        columns = math.ceil(config.vocab_size / self.tensor)
        cost = self._product(Product(config.d_model, columns), logits)
        if self.tensor == 1:
            return cost
        size = float(logits * config.vocab_size * config.item_bytes)
        inside = min(self.tensor, self.cluster.gpus_per_node)
        seconds = exchange_seconds("all-gather", size, inside, self.tensor // inside, self.rates)
        return cost + _sent(seconds, wire_bytes("all-gather", self.tensor, size))


@dataclass(frozen=True)
class Product:
    """A product with weights on one device: rows of k inputs give n outputs.

    Attributes:
      k, n: sizes.
      experts: number of such matrices, of which a row takes `per_token`; 0 is one matrix for all.
    """

    k: int
    n: int
    experts: int = 0
    per_token: int = 0


@functools.lru_cache(maxsize=256)
def products(config: ModelConfig, tensor: int) -> tuple[Product, ...]:
    """Return the products of a layer; weights of one input are joined, as q, k and v."""
    joined: dict[tuple[str, ...], Product] = {}
    for p in layer_parameters(config):
        if not p.inputs:
            continue
        k, n, count = p.matrices(_shard(p, tensor))
        name = p.path[:-1] if p.reads_stream and p.part is not None else p.path
        before = joined[name].n if name in joined else 0
        is_expert = "expert" in p.axes
        joined[name] = Product(
            k, before + n, count if is_expert else 0, config.experts_per_token if is_expert else 0
        )
    return tuple(joined.values())


def layer_bytes(config: ModelConfig, tensor: int) -> float:
    """Return the bytes of a layer's parameters on one device."""
    return float(sum(
        math.prod(_shard(p, tensor)) * config.item_bytes for p in layer_parameters(config)
    ))  # fmt: skip


def _shard(p: Parameter, tensor: int) -> tuple[int, ...]:
    shape = []
    for size, axis in zip(p.shape, p.axes, strict=True):
        names = {axis} if isinstance(axis, str) else set(axis or ())
        # At least one head of keys: fewer than devices are replicated.
        shape.append(math.ceil(size / tensor) if names & _SHARDED else size)
    return tuple(shape)


def _elements(config: ModelConfig, rows: int, tensor: int) -> float:
    """Return the elements that a layer's fused elementwise kernels read and write on one device."""
    heads = math.ceil(config.num_heads / tensor)
    kv_heads = math.ceil(config.num_kv_heads / tensor)
    rotated = 2 * (heads + kv_heads) * config.head_dim
    cached = 2 * kv_heads * config.value_dim
    hidden = config.d_ff // tensor * (config.experts_per_token if config.num_experts else 1)
    hidden += config.shared_experts * config.d_ff // tensor
    gathered = 4 * config.experts_per_token * config.d_model if config.num_experts else 0
    activated = (3 if config.mlp == "gated" else 2) * hidden
    return float(rows * (_STREAM_PASSES * config.d_model + rotated + cached + activated + gathered))


def _sent(seconds: float, n_bytes: float) -> Cost:
    return Cost(
        seconds, {"exposed communication": seconds}, communication_s=seconds, link_bytes=n_bytes
    )
