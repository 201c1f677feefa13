"""The time of a training step that is described, not compiled: layout, software and cluster."""

from typing import NamedTuple

import numpy as np

from parallax.analytic.described.implementation import Implementation
from parallax.analytic.described.layer_work import Bench
from parallax.analytic.described.layout import Layout
from parallax.analytic.described.step_work import Number, StageWork, step_work
from parallax.cost.estimating import Cost
from parallax.cost.networks import rates_for
from parallax.cost.rates import Rates
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig

# Bytes of AdamW per parameter: gradient, two moments and master weight read; the latter three and
# a 16-bit weight written. Every gradient is read for the norm and set to zero.
_UPDATE_BYTES, _CLEAR_BYTES = 30, 8
_BACKWARD_SHARE = 2 / 3

TERMS = ("matrix products", "attention", "memory", "launches", "exposed communication")


class StepTerms(NamedTuple):
    """Seconds by term, in the order of TERMS: of a microbatch on each stage, and once per step."""

    microbatch: tuple[Number, ...]
    once: tuple[Number, ...]


def step_terms(work: StageWork, software: Implementation, memory_bytes_per_s: float) -> StepTerms:
    """Combine the work of stages with an implementation's constants.

    Args:
      work: fields are arrays of any shape, one element per stage.
      software: the constants.
      memory_bytes_per_s: rate of passes over memory.
    """
    products = work.products_s / software.products_share
    attention = work.attention_s / software.attention_share
    moved = work.passes_bytes * software.passes + work.logits * software.loss_bytes
    memory = moved / memory_bytes_per_s
    compute = products + attention + memory
    starts = work.tensor_rounds * software.start_between_s
    tensor = work.tensor_s + starts
    exposed = (
        _exposed(tensor, software.tensor_overlap, compute)
        + _exposed(work.context_s, software.context_overlap, attention)
        + _exposed(work.gather_s, software.gather_overlap, compute)
        + work.expert_s
    )
    host = work.layers * software.host_layer_s + work.tensor_layers * software.host_rank_s
    host += starts if software.blocking else 0.0
    waiting = np.maximum(0.0, host - compute - exposed)
    launches = waiting + work.handoffs * software.handoff_s
    reduced = _exposed(work.reduce_s, software.gradient_overlap, _BACKWARD_SHARE * compute)
    updated = work.state * _UPDATE_BYTES + work.params * _CLEAR_BYTES
    return StepTerms(
        (products, attention, memory, launches, exposed + work.handoff_s),
        (0.0, 0.0, updated / memory_bytes_per_s, software.step_s,
         reduced + work.gather_weights_s),
    )  # fmt: skip


def _exposed(seconds: Number, overlap: float, behind: Number) -> Number:
    """Return what is left of a transfer of which a share, up to all of the kernels', is hidden."""
    return seconds - np.minimum(overlap * seconds, behind)


def step_seconds(terms: StepTerms, microbatches: Number, chunks: Number = 1) -> Number:
    """Return the seconds of a 1F1B step: filling and draining, then the slowest stage's rhythm.

    Args:
      terms: arrays whose last dim is the stage.
      microbatches, chunks: microbatches per step, and chunks of layers per stage.
    """
    each, once = _total(terms.microbatch), _total(terms.once)
    slowest = each.max(-1)
    fill = (each.sum(-1) - slowest) / chunks
    return fill + microbatches * slowest + once.max(-1)


def _total(terms: tuple[Number, ...]) -> np.ndarray:
    return np.sum(np.broadcast_arrays(*terms), axis=0)


def train_cost(
    config: ModelConfig,
    layout: Layout,
    seq_len: int,
    cluster: Cluster,
    software: Implementation,
    rates: Rates | None = None,
) -> Cost:
    """Estimate the cost of one training step per device.

    Args:
      config: the model.
      layout: how it is split and batched.
      seq_len: tokens per sequence.
      cluster: GPUs and interconnect; as many devices as the layout has.
      software: what runs it.
      rates: constants of the GPU; None takes the shipped ones, of the cluster's network if named.

    Raises:
      ValueError: the layout does not fit the model or the cluster.
    """
    layout.check(config, seq_len, cluster)
    rates = rates_for(cluster, rates)
    stages = step_work(config, layout, seq_len, Bench(cluster, rates), software)
    work = StageWork(*np.array(stages).T)
    terms = step_terms(work, software, rates.memory_bytes_per_s)
    slowest = int(np.argmax(_total(terms.microbatch)))
    last = int(np.argmax(_total(terms.once)))
    parts = {}
    for name, each, once in zip(TERMS, terms.microbatch, terms.once, strict=True):
        fill = (each.sum() - each[slowest]) / layout.interleaved
        once_s = np.broadcast_to(once, each.shape)[last]
        parts[name] = float(fill + layout.microbatches * each[slowest] + once_s)
    return Cost(sum(parts.values()), parts)
