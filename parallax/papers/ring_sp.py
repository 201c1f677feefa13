"""Ring Attention + Sequence Parallelism beside TP=8 x PP=2, four dense layers."""

from parallax.models.config import ModelConfig
from parallax.papers.assumed import DENSE
from parallax.papers.paper import Claim, Paper, Validation
from parallax.workload import Workload

RING_SP = Paper(
    name="ring_sp",
    title="Ring Attention + Sequence Parallelism over 16 GPUs, 4-layer dense model",
    config=ModelConfig(
        name="ring_sp",
        num_layers=4,
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
    proposed="ring_sequence",
    cluster="h100_2x8",
    claims=(
        Claim("tensor_pipeline", "TPS", 1.20e6, "tokens/s", "tps",
              "paper two_level gives the same figure for 2 layers of the same width"),
        Claim("ring_sequence", "TPS", 1.45e6, "tokens/s", "tps",
              "65 % of 16 H100's dense FP16 peak, if nothing else took time"),
        Claim("tensor_pipeline", "TPOT", 0.85, "ms", "inv_tps_us_printed_ms",
              "1 / TPS is 0.83 us: printed 1000 times larger, and 2 % off"),
        Claim("ring_sequence", "TPOT", 0.70, "ms", "inv_tps_us_printed_ms",
              "1 / TPS is 0.69 us: printed 1000 times larger, and 1.5 % off"),
    ),
    assumptions=DENSE,
    validations=(
        Validation("no degradation: RA+SP is never worse than the baseline", "proposed_is_faster"),
        Validation("the benefit grows with sequences beyond 16k tokens", "sweep_seq_len"),
        Validation("performance improves with more devices", "sweep_devices"),
    ),
    small_workload=Workload(batch=16, seq_len=80, microbatches=4),
)  # fmt: skip
