"""The machine's limits on a throughput claim, under each reading of "tokens per second"."""

import dataclasses
import math

from parallax.meshes.cluster import Cluster
from parallax.papers.derivations.speed import active_matrix_params, prompt_flops_a_token
from parallax.papers.paper import Paper
from parallax.papers.results import Limit, TpsReading
from parallax.workload import Workload

TPS_READINGS: tuple[TpsReading, ...] = ("prefill", "decode")
TERMS = ("compute", "HBM", "NVLink", "network")


def tps_limit(paper: Paper, strategy: str, reading: TpsReading, cluster: Cluster) -> Limit:
    """Derive the throughput limit of one strategy on the paper's model and batch.

    FLOPs and HBM reads are those of any strategy: split evenly, masked pairs and bubbles left out,
    every weight read once. The bytes sent are the strategy's own closed-form minimum, on the links
    that they cross, without latency. Experts are chosen evenly.

    Args:
      paper, strategy: a paper, and one of `paper.strategies`.
      reading: what "tokens per second" counts.
      cluster: a cluster with as many devices as the strategy's mesh.
    """
    config, work, gpu = paper.config, paper.workload, cluster.gpu
    weights = float(config.num_layers * config.layer_params * config.item_bytes)
    held = float(config.num_params * config.item_bytes)
    if reading == "prefill":
        tokens = work.tokens
        flops = tokens * prompt_flops_a_token(config, work.seq_len)
        read = weights
    else:
        tokens = work.batch
        table = config.vocab_size * config.d_model
        scores = 4.0 * work.seq_len * config.num_heads * config.head_dim * config.num_layers
        flops = tokens * (2.0 * (active_matrix_params(config) + table) + scores)
        row = 2 * config.num_kv_heads * config.head_dim * config.num_layers * config.item_bytes
        cache = float(work.tokens * row)
        read = weights + table * config.item_bytes + cache
        held += cache
    sent = _least_link_bytes(paper, strategy, reading, cluster)
    return Limit(
        reading, tokens,
        {
            "compute": flops / (cluster.devices * gpu.peak_flops(config.dtype)),
            "HBM": read / (cluster.devices * gpu.hbm_bytes_per_s),
            "NVLink": sent["nvlink"] / gpu.nvlink_bytes_per_s,
            "network": sent["nic"] / cluster.nic_bytes_per_s,
        },
        held, float(cluster.devices * cluster.usable_bytes),
    )  # fmt: skip


def _least_link_bytes(
    paper: Paper, strategy: str, reading: TpsReading, cluster: Cluster
) -> dict[str, float]:
    """Derive the bytes on the busiest device's links, by the closed form without bubbles."""
    # Imported here, as listing the papers needs no JAX.
    from parallax.analytic.sends import one_send
    from parallax.cost.links import least_link_bytes
    from parallax.programs.steps import make_step
    from parallax.strategies import build

    built = build(
        strategy, devices=cluster.devices, node_size=cluster.gpus_per_node, cluster=cluster.name
    )
    work = _fitted(paper.workload, built.split().count("act_batch"))
    step = make_step(paper.config, built, work, reading)
    total = {"nvlink": 0.0, "nic": 0.0}
    for t in step.of_shard_map():
        once = dataclasses.replace(t, wire_bytes=t.minimum_bytes, count=1)
        send = one_send(once, built.mesh)
        for link, size in least_link_bytes(send.collective, cluster).items():
            total[link] += size
    return total


def _fitted(work: Workload, parts: int) -> Workload:
    return dataclasses.replace(
        work, microbatches=math.gcd(work.microbatches, max(1, work.batch // parts))
    )
