"""Two-level attention, head groups x head-dimension slices, beside TP=8 x PP=2, two dense layers."""

from parallax.models.config import ModelConfig
from parallax.papers.assumed import DENSE
from parallax.papers.paper import Claim, Paper, Validation
from parallax.workload import Workload

TWO_LEVEL = Paper(
    name="two_level",
    title="Two-level attention partitioning (4 head groups x 4 slices), 2-layer dense model",
    config=ModelConfig(
        name="two_level",
        num_layers=2,
        d_model=8192,
        num_heads=16,
        num_kv_heads=16,
        head_dim=512,
        d_ff=32768,
        vocab_size=32000,
        dtype="float16",
    ),
    workload=Workload(batch=1024, seq_len=10_000, microbatches=64),
    strategies=("tensor_pipeline", "ring_sequence", "data_parallel"),
    proposed="two_level",
    missing="the paper's own two_level strategy is not in this release",
    cluster="h100_2x8",
    claims=(
        Claim("tensor_pipeline", "TPS", 1.20e6, "tokens/s", "tps",
              "paper ring_sp gives the same figure for 4 layers of the same width"),
        Claim("two_level", "TPS", 1.58e6, "tokens/s", "tps"),
        Claim("tensor_pipeline", "TPOT", 0.35, "ms", "sync_overhead_per_token",
              "at 1.2 M tokens/s a token takes 0.83 us in all"),
        Claim("two_level", "TPOT", 0.22, "ms", "sync_overhead_per_token",
              "at 1.58 M tokens/s a token takes 0.63 us in all"),
    ),
    assumptions=DENSE,
    validations=(
        Validation("identical architecture for both methods: the same function", "same_function"),
        Validation("the method scales to m x n devices beyond the number of heads", "two_level"),
        Validation("memory a device is reduced by m x n = 16", "two_level"),
    ),
    small_workload=Workload(batch=16, seq_len=80, microbatches=4),
)  # fmt: skip
