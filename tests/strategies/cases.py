"""Small models and the strategies that every test of exactness runs."""

from parallax.models.config import ModelConfig
from parallax.strategies import data_parallel, ring_sequence, tensor_pipeline
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
}


def workload(strategy, packed=False, seq_len=80):
    """16 sequences in as many microbatches as the device's share of the batch allows, at most 4."""
    local = 16 // strategy.split().count("act_batch")
    return Workload(16, seq_len, min(4, local), packed)
