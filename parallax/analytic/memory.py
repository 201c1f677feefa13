"""The memory per device by closed form: weights and cache exactly, plus a layer's peak."""

import jax

from parallax.analytic.packed_weights import (
    PackedWeights,
    device_matrices,
    layer_weight_bytes,
    weights_of,
)
from parallax.models.block import attention_shape
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer

_WIDE = 4


def estimate_bytes(
    sharded: ShardedTransformer,
    decoder: Decoder | None = None,
    *,
    weights: PackedWeights | None = None,
) -> float:
    """Estimate the bytes per device that a prefill needs, with the KV cache of `decoder` beside it.

    Weights and cache are exact. The peak of a prefill is the larger of two: the residual stream in
    and out with queries, keys, values and the float32 result, or with the wide rows of the MLP.
    Packed weights (`weights`; None is as the config says) take their stored bytes, and, unpacked by
    XLA, those of one layer's dense matrices.
    """
    config, split = sharded.config, sharded.strategy.split()
    workload, item = sharded.workload, sharded.config.item_bytes
    held_weights = _weight_bytes(sharded, weights or weights_of(config))
    b = workload.batch // split.count("act_batch") // workload.microbatches
    tokens = b * workload.seq_len // split.count("act_seq")
    residual = tokens * config.d_model * item
    shape = attention_shape(config, split, b, workload.seq_len, packed=False)
    work = split.attention.work(shape, split.mesh_axes)
    slices = 1 if shape.whole_heads else split.count("head_dim")
    q = tokens * shape.heads * shape.head_dim // slices
    kv = tokens * shape.kv_heads * (shape.head_dim + shape.own_values) // slices
    block = work.rows * work.block**2 * (_WIDE + item)
    attention = q * (2 * item + _WIDE) + 2 * kv * item + block
    if split.attention.seq_axes:
        attention += kv * item  # the next keys are in flight
    # The wide rows are the side of every matrix that is not the residual stream.
    routed = bool(config.num_experts)
    of = weights_of(config).of(config).matrices
    matrices = device_matrices(config, split, "mlp").items()
    wide = (k + n - config.d_model for name, (k, n, _) in matrices if of[name].is_shared == routed)
    mlp = tokens * item * sum(wide)  # with experts, of those that every token passes
    if routed:
        mlp += 6 * residual * config.experts_per_token
    held = 3 * residual + max(attention, mlp)
    cache = decoder.kv_bytes() if decoder is not None else 0.0
    return float(held_weights + held + cache)


def _weight_bytes(sharded: ShardedTransformer, weights: PackedWeights) -> float:
    config, split = sharded.config, sharded.strategy.split()
    whole = float(sum(jax.tree.leaves(sharded.shard_bytes())))
    stored, dense, made = layer_weight_bytes(config, split, weights)
    if config.compression is None:  # packed weights asked of a model that is not compressed
        whole -= max(sharded.groups) * (dense - stored)
    return whole + made
