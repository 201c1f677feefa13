"""Small models and the strategies that every test of exactness runs."""

from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.parallel.attention_parts import HeadSlices, Ring, Ulysses
from parallax.rules import Rules
from parallax.strategies import data_parallel, ring_sequence, tensor_pipeline, two_level, ulysses
from parallax.strategy import Strategy
from parallax.workload import Workload

SMALL = ModelConfig(
    name="small", num_layers=2, d_model=64, num_heads=8, num_kv_heads=8, head_dim=8, d_ff=128,
    vocab_size=256, dtype="float64", max_seq_len=80,
)  # fmt: skip
GQA_FULL = SMALL.replace(
    num_heads=16, num_kv_heads=2, head_dim=4, mlp="gated", norm="layernorm", positions="learned",
    causal=False,
)  # fmt: skip

STRATEGIES = {
    "tensor_pipeline": tensor_pipeline(8, 2),
    "ring_sequence": ring_sequence(16),
    "data_parallel": data_parallel(16),
    # 16 devices, 8 heads: "auto" exchanges slices for query shards of whole heads.
    "two_level": two_level(4, 4),
    "double_ring": ring_sequence(16, nodes=2),
    "ulysses": ulysses(8),
}


def sliced(axes, attention, **rules):
    """Two-level beside another mesh axis."""
    mesh = MeshSpec({**axes, "head_group": 2, "head_slice": 2})
    return Strategy("sliced", mesh, two_level().rules.replace(**rules), attention=attention)


# Products of the above, and each exact reduction of head slices.
PRODUCTS = {
    "exchange": two_level(2, 4, reduction="exchange"),
    "scores": two_level(4, 4, reduction="scores"),
    "gather": two_level(4, 4, reduction="gather"),
    "two_level_ring": sliced(
        {"seq": 4}, HeadSlices("head_slice", "auto", Ring("seq", "zigzag")), act_seq="seq"
    ),
    "scores_ring": sliced(
        {"seq": 4}, HeadSlices("head_slice", "scores", Ring("seq")), act_seq="seq"
    ),
    "two_level_data": sliced({"data": 4}, HeadSlices("head_slice"), act_batch="data"),
    "ulysses_ring": Strategy(
        "ulysses_ring", MeshSpec({"node": 2, "seq": 8}), Rules(act_seq=("node", "seq")),
        attention=Ulysses("seq", Ring("node", "zigzag")),
    ),
}  # fmt: skip


def workload(strategy, packed=False, seq_len=80):
    """16 sequences in as many microbatches as the device's share of the batch allows, at most 4."""
    local = 16 // strategy.split().count("act_batch")
    return Workload(16, seq_len, min(4, local), packed)
