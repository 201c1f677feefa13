"""The time of serving as others' software does it: to the first token, and per token after it.

Requests of one shape arrive as others end, so that `batch` of them are in flight. A request lives
through the decoding steps of its own tokens and, once, through the prompts of all others; what it
does not wait for before its first token it waits for after it.
"""

import math
from typing import NamedTuple

from parallax.analytic.described.replica import Replica
from parallax.analytic.described.serving_constants import ServingConstants
from parallax.cost import Cost, Rates, rates_of
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig


class Serving(NamedTuple):
    """The estimate of a load of equal requests (tag: modelled).

    Attributes:
      ttft: cost from a request's arrival to its first token, queueing included.
      tpot: cost per output token after it.
      running: requests that run at a time: the batch, or those whose KV cache fits in memory.
      weight_bytes, cache_bytes: of one device: its weights, and the KV cache of one request.
      fits: whether the weights and the cache of one request have room.
    """

    ttft: Cost
    tpot: Cost
    running: float
    weight_bytes: float
    cache_bytes: float
    fits: bool


class Load(NamedTuple):
    """Equal requests: `batch` in flight, of prompt_len and output_len tokens each."""

    batch: int
    prompt_len: int
    output_len: int

    @property
    def context(self) -> int:
        """The tokens of a running request, on average over its decoding steps."""
        return self.prompt_len + self.output_len // 2


def serve_cost(
    config: ModelConfig,
    *,
    tensor: int,
    pipeline: int = 1,
    batch: int,
    prompt_len: int,
    output_len: int,
    cluster: Cluster,
    implementation: ServingConstants,
    rates: Rates | None = None,
) -> Serving:
    """Estimate the time to the first token and per output token of serving one model.

    Args:
      config: the model, causal and in 16 bits.
      tensor, pipeline: degrees; tensor * pipeline devices of the cluster hold one copy. Key/value
        heads fewer than tensor are replicated. Pipelines are assumed, no measurement has them.
      batch: requests in flight.
      prompt_len, output_len: tokens of each request.
      cluster: the GPUs.
      implementation: constants of the software.
      rates: cost model constants; None uses those shipped for the GPU.

    A model that does not fit in memory is estimated as if its weights did, and all requests run.

    Raises:
      ValueError: sizes that are not positive, degrees that do not divide heads, widths or layers,
        or that need more devices than the cluster has, and models that are not causal or not in
        16 bits.

    Cost: milliseconds; nothing is traced but one abstract layer.
    """
    _check_layout(config, tensor, pipeline, cluster)
    _check_positive(batch=batch, prompt_len=prompt_len, output_len=output_len)
    replica = Replica(config, tensor, pipeline, cluster, rates or rates_of(cluster.gpu.name))
    return serve(replica, Load(batch, prompt_len, output_len), implementation)


def serve(replica: Replica, load: Load, software: ServingConstants) -> Serving:
    """Estimate `serve_cost` on a replica that was checked."""
    running = running_requests(replica, load, software.memory_share)
    decode = _decode(replica, load, running, software)
    prompt = _prompt(replica, load, running, software)
    ahead = _prompts_ahead(load, running, software)
    per_stage = 1 / replica.pipeline  # others' prompts are in other stages meanwhile
    first = prompt.times(1 + ahead * per_stage) + decode + _host(software.request_s)
    later = prompt.times((running - 1 - ahead) * per_stage / load.output_len)
    ttft, tpot = first, decode + later

    service = ttft + tpot.times(load.output_len)
    limit = max(load.output_len * software.stream_token_s, software.stream_request_s)
    lost = max(0.0, running * limit - service.seconds)
    # The next of the others ends after a share 1 / running of a request's time.
    queued = software.late_slots * (running - 1) / running**2 + (load.batch - running) / running
    ttft += service.times(queued) + _host(software.stream_first * lost)
    tpot += _host((1 - software.stream_first) * lost / load.output_len)
    weights, each = replica.weight_bytes, replica.cache_bytes(load.context)
    fits = weights + each <= software.memory_share * replica.cluster.gpu.memory_bytes
    return Serving(ttft, tpot, running, weights, each, fits)


def running_requests(replica: Replica, load: Load, memory_share: float) -> float:
    """Compute how many requests run at a time: as many as have room for their KV cache.

    At least one, and all of them where not even the weights fit: that verdict is not this model's.
    """
    room = memory_share * replica.cluster.gpu.memory_bytes - replica.weight_bytes
    if room <= 0:
        return float(load.batch)
    each = replica.cache_bytes(load.context)
    return min(float(load.batch), max(1.0, room / each))


def _decode(replica: Replica, load: Load, running: float, software: ServingConstants) -> Cost:
    """Estimate the step in which every running request gets a token, at its mean context."""
    rows = math.ceil(running / replica.pipeline)  # of a microbatch
    attention = replica.decode_attention(rows, load.context)
    host = _host(software.step_s + software.sequence_s * running)
    return replica.forward(rows, rows) + attention + host


def _prompt(replica: Replica, load: Load, running: float, software: ServingConstants) -> Cost:
    """Estimate what a prompt adds to the steps that take it, which are as full as may be."""
    rows = math.ceil(running / replica.pipeline) if software.mixes else 0
    beside = replica.forward(rows, rows).times(-1) if rows else Cost()
    together = _together(load, running, software)
    whole, rest = divmod(load.prompt_len * together, software.step_tokens)
    cost = Cost()
    for steps, tokens in ((whole, software.step_tokens), (1, math.ceil(rest))):
        if steps and tokens:
            cost += (replica.forward(tokens + rows, rows or 1) + beside).times(steps)
    return cost.times(1 / together) + replica.prompt_attention(load.prompt_len)


def _together(load: Load, running: float, software: ServingConstants) -> float:
    """Compute how many prompts a step takes when enough of them wait."""
    return min(running, max(1, software.step_tokens // load.prompt_len))


def _prompts_ahead(load: Load, running: float, software: ServingConstants) -> float:
    """Compute how many other prompts, on average, are taken before a request's first token."""
    wave = (running + _together(load, running, software)) / 2  # those of a step end at once
    alone = min(running, software.arriving)
    return software.in_waves * wave + (1 - software.in_waves) * alone - 1


def _host(seconds: float) -> Cost:
    return Cost(seconds, {"launches": seconds})


def _check_layout(config: ModelConfig, tensor: int, pipeline: int, cluster: Cluster) -> None:
    _check_positive(tensor=tensor, pipeline=pipeline)
    context = f"serving {config.name!r}"
    if config.compression is not None or not config.causal or config.item_bytes != 2:
        raise ValueError(
            f"{context}: got dtype={config.dtype}, compression={config.compression}, causal="
            f"{config.causal}; kernels are measured for causal models in 16 bits. Use "
            "--dtype=bfloat16 (in Python dtype='bfloat16') and a causal model without compression."
        )
    for name, size in _split_sizes(config).items():
        if size % tensor:
            raise ValueError(
                f"{context}: tensor={tensor} does not divide {name}={size}. Use a divisor."
            )
    heads = config.num_kv_heads
    if heads % tensor and tensor % heads:
        raise ValueError(
            f"{context}: tensor={tensor} neither divides num_kv_heads={heads} nor is a multiple of "
            "it. Use one that is."
        )
    if pipeline > config.num_layers:
        raise ValueError(
            f"{context}: {pipeline} stages of {config.num_layers} layers. Use at most as many."
        )
    if tensor * pipeline > cluster.devices:
        raise ValueError(
            f"{context}: tensor={tensor} x pipeline={pipeline} need {tensor * pipeline} devices, "
            f"cluster {cluster.name} has {cluster.devices}. Use fewer."
        )
    if tensor > cluster.gpus_per_node and tensor % cluster.gpus_per_node:
        raise ValueError(
            f"{context}: tensor={tensor} is no whole number of nodes of {cluster.gpus_per_node}."
        )


def _split_sizes(config: ModelConfig) -> dict[str, int]:
    sizes = {"num_heads": config.num_heads, "d_ff": config.d_ff}
    return sizes | ({"dense_d_ff": config.dense_d_ff} if config.dense_layers else {})


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"serving: {name} is {size}, expected at least 1.")
