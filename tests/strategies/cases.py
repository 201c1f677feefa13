"""Small models and the strategies that every test of exactness runs."""

from parallax.models.config import ModelConfig
from parallax.models.layer_kinds import LatentAttention, LayerKind, RopeScaling, Router
from parallax.strategies import STRATEGIES as REGISTERED
from parallax.strategies import (
    build,
    cache_tiled,
    data_parallel,
    expert_parallel,
    fsdp,
    hsdp,
    hybrid,
    layerwise,
    ring_sequence,
    shard_optimizer,
    shard_weights,
    tensor_pipeline,
    two_level,
    ulysses,
)
from parallax.workload import Workload

SMALL = ModelConfig(
    name="small", num_layers=2, d_model=64, num_heads=8, num_kv_heads=8, head_dim=8, d_ff=128,
    vocab_size=256, dtype="float64", max_seq_len=80,
)  # fmt: skip
GQA_FULL = SMALL.replace(
    num_heads=16, num_kv_heads=2, head_dim=4, mlp="gated", norm="layernorm", positions="learned",
    causal=False,
)  # fmt: skip
EXPERTS = SMALL.replace(name="experts", num_experts=16, d_ff=32)
YARN = RopeScaling("yarn", 4.0, original_max_seq_len=32, attention_factor=1.1)
# Five layers in patterns of two: a window that the model's own rotation has, and other layers.
KINDS = SMALL.replace(
    name="kinds", num_layers=5, mlp="gated", gate="gelu", sinks=True,
    pattern=(LayerKind(window=11), LayerKind(rope_theta=500.0, rope_scaling=YARN)),
    score_cap=3.0, logit_cap=5.0, score_scale=0.5, qk_norm=True, norms="both", norm_offset=True,
    embed_scale=8.0, tie_embeddings=True,
)  # fmt: skip
# Norms of all heads together and behind each part, some rotated, and layers without positions.
OTHERS = SMALL.replace(
    name="others", num_layers=4, mlp="gated", gate="clamped", qk_norm=True, qk_norm_width="all",
    norms="after", qkv_bias=True, rotary_dim=4,
    pattern=(LayerKind(window=20), LayerKind(rotates=False)),
)  # fmt: skip
TILE = 8  # rows of an expert at once: small models have few

# Every system alone; a new entry of the registry joins by itself, below.
STRATEGIES = {
    "tensor_pipeline": tensor_pipeline(8, 2),
    "ring_sequence": ring_sequence(16),
    "data_parallel": data_parallel(16),
    # 16 devices, 8 heads: "auto" exchanges slices for query shards of whole heads.
    "two_level": two_level(4, 4),
    "layerwise": layerwise(2, handoff="overlapped"),
}

# What differs within a system, and products of systems.
VARIANTS = {
    "double_ring": ring_sequence(16, nodes=2),
    "ulysses": ulysses(8),
    "exchange": two_level(2, 4, reduction="exchange"),
    "scores": two_level(4, 4, reduction="scores"),
    "gather": two_level(4, 4, reduction="gather"),
    "tiled stages": cache_tiled(layerwise(2, handoff="overlapped"), 4, 2, round=2),
    "tiled ring x tensor": cache_tiled(hybrid(ring_sequence(4), tensor_pipeline(4, 1)), 2, 4),
}
HYBRIDS = {
    "ring x tensor": hybrid(ring_sequence(4), tensor_pipeline(4, 1)),
    "ring x data": hybrid(ring_sequence(8), data_parallel(2)),
    "two_level x data": hybrid(two_level(2, 2), data_parallel(4)),
    "two_level x ring": hybrid(two_level(2, 2), ring_sequence(4)),
    "scores x ring": hybrid(two_level(2, 2, reduction="scores"), ring_sequence(4)),
    "pipeline x ring": hybrid(layerwise(2), ring_sequence(8)),
    "pipeline x ring x tensor": hybrid(layerwise(2), ring_sequence(4), tensor_pipeline(2, 1)),
    "ulysses x ring": ulysses(16, nodes=2),
    "ulysses x tensor": hybrid(ulysses(4), tensor_pipeline(2, 1)),
}

# With experts: where they are and how tokens reach them.
WITH_EXPERTS = {
    "local": data_parallel(16),
    "tensor": tensor_pipeline(8, 2),
    "colocated": tensor_pipeline(8, 2, experts="colocated"),
    "exchange": expert_parallel(16, tile=TILE),
    "ragged": expert_parallel(16, tile=TILE, exchange="ragged"),
    "by node": expert_parallel(16, nodes=2, tile=TILE),
    "expert x tensor": hybrid(expert_parallel(8, tile=TILE), tensor_pipeline(2, 1)),
    "pipeline x expert": hybrid(layerwise(2), expert_parallel(8, tile=TILE)),
}

# Biases, shared experts, groups, a bias of the choice and another gate, all in one model.
MIXTURE = EXPERTS.replace(
    name="mixture", num_experts=8, experts_per_token=3, mlp="gated", gate="clamped",
    gate_limit=0.7, bias=True, shared_experts=2,
    router=Router("sigmoid", scale=2.5, bias="choice", groups=4, groups_per_token=2,
                  group_score="two_largest"),
)  # fmt: skip
LEARNED_BIAS = MIXTURE.replace(
    name="learned bias", shared_experts=0, gate="gelu", router=Router(bias="logits")
)
WITH_DENSE = MIXTURE.replace(name="dense first", num_layers=4, dense_layers=2, dense_d_ff=96)
MIXTURES = {
    "colocated": tensor_pipeline(4, 1, experts="colocated"),
    "expert x tensor": hybrid(expert_parallel(4, tile=TILE), tensor_pipeline(2, 1)),
    "pipeline x tensor": tensor_pipeline(2, 2),
    "expert x fsdp": shard_weights(expert_parallel(8, tile=TILE), "expert"),
    "sequence-parallel norms": tensor_pipeline(4, 1, sequence_parallel_norms=True),
    "by node": expert_parallel(8, nodes=2, tile=TILE),
    "pipeline x expert": hybrid(layerwise(2), expert_parallel(4, tile=TILE, exchange="ragged")),
    "tensor x data x fsdp": shard_weights(
        hybrid(data_parallel(2), tensor_pipeline(2, 1)), "data", gather="step"
    ),
}

# Latents with and without a query rank; dense first layers and experts, as DeepSeek's models.
LATENT = SMALL.replace(name="latent", head_dim=12, latent=LatentAttention(16, 32, 4, 6))
LATENT_MIXTURE = LATENT.replace(
    name="latent mixture", num_layers=3, dense_layers=1, dense_d_ff=64, num_experts=8, d_ff=32,
    mlp="gated", shared_experts=1, latent=LatentAttention(16, None, 4, 14),
    router=Router("sigmoid", bias="choice", groups=4, groups_per_token=2),
)  # fmt: skip
LATENTS = {
    "tensor x fsdp": shard_weights(
        hybrid(data_parallel(2), tensor_pipeline(4, 1, sequence_parallel_norms=True)), "data"
    ),
    "pipeline x ring x tensor": hybrid(layerwise(2), ring_sequence(4), tensor_pipeline(2, 1)),
    "tiled ring x tensor": cache_tiled(hybrid(ring_sequence(4), tensor_pipeline(4, 1)), 2, 4),
    "two_level x ring": hybrid(two_level(2, 2), ring_sequence(4)),
    "double_ring": ring_sequence(16, nodes=2),
    "ulysses": ulysses(8),
    "ulysses x ring": ulysses(16, nodes=2),
    "two_level x fsdp": shard_weights(hybrid(data_parallel(4), two_level(2, 2)), "data"),
    "tiled stages": cache_tiled(layerwise(2, handoff="overlapped"), 4, 2, round=2),
}

# Weights or optimizer state sharded over devices with different tokens, with every system.
SHARDED = {
    "fsdp by step": fsdp(8, gather="step"),
    "zero-1": shard_optimizer(data_parallel(8), "data"),
    "hsdp x zero-1": shard_optimizer(hsdp(2, 4), "replica"),
    "ring x fsdp": shard_weights(ring_sequence(8), "seq"),
    "ring x data x fsdp": shard_weights(
        hybrid(data_parallel(2), ring_sequence(4)), ("data", "seq")
    ),
    "ulysses x zero-1": shard_optimizer(ulysses(8), "seq"),
    "tensor x fsdp": shard_weights(
        hybrid(data_parallel(2), tensor_pipeline(4, 1, sequence_parallel_norms=True)), "data"
    ),
    "pipeline x fsdp": shard_weights(hybrid(data_parallel(2), tensor_pipeline(2, 2)), "data"),
    "pipeline x fsdp by step": shard_weights(
        hybrid(data_parallel(2), layerwise(2)), "data", gather="step"
    ),
    "two_level x fsdp": shard_weights(hybrid(data_parallel(4), two_level(2, 2)), "data"),
    "tiled x fsdp": cache_tiled(fsdp(4, gather="step"), 4, 2),
}
SHARDED_EXPERTS = {
    "expert x fsdp": shard_weights(expert_parallel(8, tile=TILE), "expert"),
    "by node x fsdp": shard_weights(expert_parallel(8, nodes=2, tile=TILE), ("node", "expert")),
    "data x expert x fsdp": shard_weights(
        hybrid(data_parallel(2), expert_parallel(4, tile=TILE)), ("data", "expert")
    ),
    "expert x zero-1": shard_optimizer(expert_parallel(8, tile=TILE), "expert"),
    "tensor x data x fsdp": shard_weights(
        hybrid(data_parallel(2), tensor_pipeline(4, 1)), "data", gather="step"
    ),
}

# What runs with experts, or as a product, is tested there; whatever else the registry has, and no
# dict above, is tested as it fills two nodes of four devices.
_TESTED = {
    *STRATEGIES, *VARIANTS, "ulysses_ring", "tensor_pipeline_colocated", "expert_parallel",
    "expert_parallel_nodes",
}  # fmt: skip
STRATEGIES |= {
    name: build(name, devices=8, node_size=4) for name in REGISTERED if name not in _TESTED
}

# Five layers on four stages: one stage holds two, the others are filled up.
UNEQUAL = SMALL.replace(num_layers=5)
UNEQUAL_STAGES = {
    "dealt out": layerwise(4, handoff="lockstep"),
    "chosen": layerwise(4, layers=(1, 1, 2, 1), handoff="overlapped"),
}


def workload(strategy, packed=False, seq_len=80):
    """16 sequences in as many microbatches as the device's share of the batch allows, at most 4."""
    local = 16 // strategy.split().count("act_batch")
    return Workload(16, seq_len, min(4, local), packed)
