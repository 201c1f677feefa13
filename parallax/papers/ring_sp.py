"""The ring_sp paper: Ring Attention + Sequence Parallelism against TP=8 x PP=2, four layers."""

from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.derivations import speed
from parallax.papers.paper import Assumption, Claim, Paper, Setup, Validation
from parallax.workload import Workload

_TP, _RING = "tensor_pipeline", "ring_sequence"

CLAIMS = (
    Claim(_TP, "TPS", "1.20M", "tokens/s", "tps", (41, 47),
          "two_level prints the same figure for half the layers of the same width",
          speed.tps_as_two_level),
    Claim(_RING, "TPS", "1.45M", "tokens/s", "tps", (42, 47),
          "one ring over two nodes waits for the network card at each hop"),
    Claim(_TP, "TPOT", "0.85", "ms", "inv_tps_us_printed_ms", (41, 51),
          "1/TPS is 0.83 us: printed 1000 times larger, and 2 % off; batch/TPS, a decoding step, "
          "would be 0.853 ms, far below what a step takes",
          speed.inverse_tps_ms, otherwise="arithmetic error"),
    Claim(_RING, "TPOT", "0.70", "ms", "inv_tps_us_printed_ms", (42, 51),
          "1/TPS is 0.69 us: printed 1000 times larger, and 1.5 % off",
          speed.inverse_tps_ms, otherwise="arithmetic error"),
    Claim(_RING, "TPS improvement", "20.8", "%", "other", (42, 47),
          "1.45M over 1.20M", speed.tps_gain_percent, otherwise="arithmetic error"),
    Claim(_RING, "TPS gained", "250K", "tokens/s", "other", (48,),
          "1.45M less 1.20M", speed.tps_gain, otherwise="arithmetic error"),
    Claim(_RING, "TPOT reduction", "17.6", "%", "other", (42, 51),
          "of the printed TPOT; 1/TPS falls by 17.2 %",
          speed.tpot_cut_percent, otherwise="arithmetic error"),
    Claim(_RING, "TPOT saved", "0.15", "ms", "other", (52,),
          "0.85 less 0.70, in units that are 1000 times too large",
          speed.tpot_cut, otherwise="arithmetic error"),
    Claim(_RING, "length beyond which it gains more", "16k", "tokens", "other", (73,),
          "every experiment has length 10000 (line 81)"),
)  # fmt: skip

SETUP = (
    Setup(1, "heading"),
    Setup(6, "GPUs", 16),
    Setup(8, "devices", 16),
    Setup(13, "layers", 4),
    Setup(17, "precision"),
    Setup(18, "batch", 1024),
    Setup(19, "length", 10_000),
    Setup(20, "heads", 16),
    Setup(21, "head dimension", 512),
    Setup(22, "width", 8192),
    Setup(23, "MLP width", 32_768),
    Setup(28, "number of a list"),
    Setup(32, "number of a list"),
    Setup(57, "tensor parallel degree", 8),
    Setup(58, "pipeline stages", 2),
    Setup(80, "batch", 1024),
    Setup(81, "length", 10_000),
)

RING_SP = Paper(
    name="ring_sp",
    title="Ring Attention + Sequence Parallelism over 16 GPUs, 4-layer dense model",
    config=WIDE_LAYERS.replace(name="ring_sp", num_layers=4),
    workload=Workload(batch=1024, seq_len=10_000, microbatches=MICROBATCHES),
    strategies=("tensor_pipeline", "ring_sequence", "double_ring", "data_parallel"),
    cluster=CLUSTER,
    claims=CLAIMS,
    setup=SETUP,
    assumptions=(
        *common_assumptions(microbatches=MICROBATCHES),
        Assumption(
            "order of tokens in the ring",
            "zigzag: each device holds an early and a late piece of the sequence",
            "Not given; in natural order the last device does twice the mean causal work.",
        ),
        Assumption(
            "where the ring runs",
            "one ring of 16 over both nodes, one hop at a time",
            "The paper's ring has P = 16 and does not tell nodes apart.",
        ),
    ),
    validations=(
        Validation("Ring + sequence parallelism is faster than the baseline in every measurement",
                   "faster:ring_sequence"),
        Validation("Batch, length, precision and model are the same for both methods",
                   "same_workload"),
        Validation("The benefit grows with length beyond 16k tokens", "needs:lengths above 16k"),
        Validation("Performance improves with more devices", "needs:other device counts"),
    ),
    small_workload=Workload(batch=16, seq_len=80, microbatches=4),
    proposed="ring_sequence",
)  # fmt: skip
