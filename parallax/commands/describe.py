"""The `describe` command: a step as other people's software runs it, in time and memory."""

import dataclasses
from pathlib import Path

from parallax.analytic.described.implementation import implementation
from parallax.analytic.described.layout import Layout
from parallax.analytic.described.regimes import (
    bar_of,
    memory_regime,
    serving_regime,
    training_regime,
)
from parallax.analytic.described.serving import serve_cost
from parallax.analytic.described.serving_constants import server_named
from parallax.analytic.described.training import train_cost
from parallax.analytic.described.training_memory import train_memory
from parallax.commands.described_layout import degrees_of, layout_of
from parallax.cost import Rates
from parallax.meshes.cluster import Cluster, on_network
from parallax.meshes.cluster import cluster as find_cluster
from parallax.models.config import DType, ModelConfig
from parallax.report.sentences import describe_model
from parallax.requests.describe import DescribedPhase, DescribeRequest, Recompute
from parallax.requests.naming import model_notes, resolve_model, resolve_rates
from parallax.results.description import Description
from parallax.results.lens_results import Figure
from parallax.strategy import Strategy

# What the bars of whole training steps were measured on, and with.
MEASURED_ON, MEASURED_WITH = ("h100",), ("nanotron", "nanotron_synchronous")


def describe(
    model: str | Path | ModelConfig,
    split: str | Strategy,
    *,
    batch: int,
    implementation: str | None = None,
    phase: DescribedPhase = "train",
    seq_len: int | None = None,
    microbatches: int = 1,
    zero: int = 0,
    recompute: Recompute = "none",
    prompt_len: int | None = None,
    output_len: int = 128,
    cluster: str | Cluster = "h100_2x8",
    network: str | None = None,
    dtype: DType | None = None,
    rates: Rates | str | Path | None = None,
) -> Description:
    """Describe a training step, or serving, as a piece of software runs it on a cluster.

    Nothing is traced or compiled: products, attention, passes over memory, collectives and launches
    are those that the software is known to have. Only launches, overlaps and kernels' efficiencies
    differ between implementations; each constant says where it is from.

    Args:
      model: a paper's name, a folder with config.json (or its config.json), or a ModelConfig.
      split: degrees, such as "data=2,tensor=4,pipeline=2", or a strategy whose degrees are taken.
      batch: sequences of a training step over all devices, or requests in flight.
      implementation: such as "megatron" (None), "nanotron" or "torchtitan" in training, "vllm"
        (None), "sglang" or "trtllm" in serving.
      phase: "train" or "serve".
      seq_len: tokens of each sequence; of training alone.
      microbatches: microbatches that each replica splits its sequences into; of training alone.
      zero: what data ranks shard: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too.
      recompute: what the backward pass computes again: "none", "selective" or "layer".
      prompt_len, output_len: tokens of each prompt, and new tokens for each; of serving alone.
      cluster: a name or a Cluster.
      network: network between its nodes, by name; None leaves the cluster as it is.
      dtype: the dtype of parameters and activations; None is the model's own.
      rates: constants of the GPU, or a file that `parallax calibrate` wrote; None takes those
        shipped.

    Returns:
      A Description, which prints itself. Its error bars come from measurements that were not
      fitted; where there are none of its kind, it has no bar and says so.

    Raises:
      ValueError: a split that the model or the cluster cannot have, or unknown software.

    Cost: milliseconds.

    Example:
      print(px.describe("config.json", "data=2,tensor=8", batch=64, seq_len=4096, microbatches=32))
    """
    request = DescribeRequest(
        model=model, split=split, implementation=implementation, phase=phase, batch=batch,
        seq_len=seq_len, microbatches=microbatches, zero=zero, recompute=recompute,
        prompt_len=prompt_len, output_len=output_len, cluster=cluster, network=network,
        dtype=dtype, rates=rates,
    )  # fmt: skip
    request.refuse_unused()
    return run_describe(request)


def run_describe(request: DescribeRequest) -> Description:
    """Run a describe request, as `describe` does."""
    named = request.cluster
    cluster = find_cluster(named) if isinstance(named, str) else named
    cluster = on_network(cluster, request.network)
    config, _ = resolve_model(request.model, dtype=request.dtype)
    rates = resolve_rates(request.rates, cluster)
    of_phase = _training if request.phase == "train" else _serving
    found = of_phase(request, config, cluster, rates)
    served = (request.prompt_len or 0) + request.output_len
    tokens = request.seq_len or 0 if request.phase == "train" else served
    notes = model_notes(request.model, config, tokens)
    return dataclasses.replace(found, model="; ".join((_about(config), *notes)))


def _about(config: ModelConfig) -> str:
    """Return the model's sizes in words."""
    cached = config.num_layers * config.cached_width * config.item_bytes
    return f"{describe_model(config)}, {cached:,} bytes of KV cache per token"


def _training(
    request: DescribeRequest, config: ModelConfig, cluster: Cluster, rates: Rates | None
) -> Description:
    seq_len = _needed(request.seq_len, "seq_len", "train")
    software = implementation(request.implementation or "megatron")
    layout = layout_of(
        request.split, request.batch, request.microbatches, request.zero, request.recompute
    )
    cost = train_cost(config, layout, seq_len, cluster, software, rates)
    memory = train_memory(config, layout, seq_len, software)
    step = _figure(cost.seconds, "s", training_regime(layout, cluster.nodes))
    tokens = layout.sequences * seq_len
    rate = Figure(
        tokens / step.value, "tokens/s", "modelled", step.high and tokens / step.high,
        step.low and tokens / step.low,
    )  # fmt: skip
    figures = {"step_s": step, "tokens_per_s": rate,
               "memory_bytes": _figure(memory.total, "B", memory_regime(layout))}  # fmt: skip
    return Description(
        software.name, cluster.name, _words(layout), "train", figures, {"step_s": cost.terms},
        memory._asdict(), memory.total <= cluster.usable_bytes,
        _unvalidated(figures, cluster, cluster.devices, software.name),
    )  # fmt: skip


def _serving(
    request: DescribeRequest, config: ModelConfig, cluster: Cluster, rates: Rates | None
) -> Description:
    degrees = degrees_of(request.split)
    if other := {name: n for name, n in degrees.items()
                 if n > 1 and name not in ("tensor", "pipeline")}:  # fmt: skip
        raise ValueError(
            f"split {request.split}: serving is described with tensor and pipeline; got {other}. "
            "Describe one copy of the model; copies serve side by side."
        )
    software = server_named(request.implementation or "vllm")
    found = serve_cost(
        config, tensor=degrees["tensor"], pipeline=degrees["pipeline"], batch=request.batch,
        prompt_len=_needed(request.prompt_len, "prompt_len", "serve"),
        output_len=request.output_len, cluster=cluster, implementation=software, rates=rates,
    )  # fmt: skip
    each = {"ttft_s": found.ttft, "tpot_s": found.tpot}
    figures = {
        name: _figure(cost.seconds, "s", serving_regime(name[:4], software.name))
        for name, cost in each.items()
    }
    whole = found.ttft.seconds + request.output_len * found.tpot.seconds
    figures["tokens_per_s"] = Figure(
        request.batch * request.output_len / whole, "tokens/s", "modelled"
    )
    figures["running"] = Figure(found.running, "requests", "modelled")
    words = ",".join(f"{name}={degrees[name]}" for name in ("tensor", "pipeline"))
    return Description(
        software.name, cluster.name, words, "serve", figures,
        {name: cost.terms for name, cost in each.items()},
        {"parameters": found.weight_bytes, "kv_cache": found.running * found.cache_bytes},
        found.fits,
        _unvalidated(figures, cluster, degrees["tensor"] * degrees["pipeline"]),
    )  # fmt: skip


def _needed(value: int | None, name: str, phase: str) -> int:
    if value is None:
        raise ValueError(f"{name} is missing; the phase {phase} needs it. Give {name}.")
    return value


def _figure(value: float, unit: str, regime: str) -> Figure:
    bar = bar_of(regime)
    if bar is None:
        return Figure(value, unit, "modelled")
    return Figure(value, unit, "modelled", value * bar.low, value * bar.high)


def _words(layout: Layout) -> str:
    zero = f", ZeRO-{layout.zero}" if layout.zero else ""
    return (
        f"{layout.degrees}, {layout.microbatches} x {layout.microbatch} sequences a replica{zero}"
    )


def _unvalidated(
    figures: dict[str, Figure], cluster: Cluster, devices: int, trainer: str = ""
) -> str:
    """Name what no measurement stands behind: whole steps are H100's, training steps nanotron's.

    Args:
      figures: what was estimated.
      cluster: the GPUs, of which `devices` run the model.
      trainer: the software of a training step.
    """
    bare = [name for name, figure in figures.items()
            if figure.low is None and name not in ("tokens_per_s", "running")]  # fmt: skip
    if cluster.gpu.name not in MEASURED_ON:
        bare.append(f"whole steps on {cluster.gpu.name} (the bars are H100's)")
    if trainer and trainer not in MEASURED_WITH:
        bare.append(f"bars of {trainer}'s steps (they are nanotron's)")
    if devices > cluster.gpus_per_node and not cluster.network:
        bare.append("time between nodes of an unnamed network")
    return " and ".join(bare)
