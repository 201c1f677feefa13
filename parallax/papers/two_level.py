"""The two_level paper: attention split into 4 head groups x 4 slices per head, two layers."""

from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.derivations import memory, speed
from parallax.papers.paper import Assumption, Claim, Paper, Setup, Validation
from parallax.workload import Workload

_TP, _TWO = "tensor_pipeline", "two_level"

CLAIMS = (
    Claim(_TP, "TPS", "1,200,000", "tokens/s", "tps", (50, 56, 57),
          "ring_sp prints the same figure for twice the layers of the same width",
          speed.tps_as_ring_sp),
    Claim(_TWO, "TPS", "1,580,000", "tokens/s", "tps", (51, 56),
          "sums over 16 GPUs cross the network card twice a layer"),
    Claim(_TP, "TPOT", "0.35", "ms", "sync_overhead_per_token", (50, 60, 61),
          "at the printed TPS: 420 s of overhead in each second, 26 s on each of 16 GPUs",
          speed.most_overhead_ms, "at most"),
    Claim(_TWO, "TPOT", "0.22", "ms", "sync_overhead_per_token", (51, 60),
          "at the printed TPS: 348 s of overhead in each second, 22 s on each of 16 GPUs",
          speed.most_overhead_ms, "at most"),
    Claim(_TWO, "TPS gained", "380,000", "tokens/s", "other", (56, 57),
          "1,580,000 less 1,200,000", speed.tps_gain, otherwise="arithmetic error"),
    Claim(_TWO, "TPS improvement", "31.7", "%", "other", (57,),
          "1,580,000 over 1,200,000", speed.tps_gain_percent, otherwise="arithmetic error"),
    Claim(_TWO, "overhead saved", "0.13", "ms", "other", (60, 61),
          "0.35 less 0.22", speed.tpot_cut, otherwise="arithmetic error"),
    Claim(_TWO, "overhead reduction", "37.1", "%", "other", (61,),
          "0.13 of 0.35", speed.tpot_cut_percent, otherwise="arithmetic error"),
    Claim(_TWO, "memory reduction a device", "16", "times", "other", (95,),
          "holds for what is split over both levels; norms and inputs are not",
          memory.weights_divided_by),
)  # fmt: skip

SETUP = (
    Setup(1, "heading"),
    Setup(6, "GPUs", 16),
    Setup(7, "precision"),
    Setup(11, "layers", 2),
    Setup(12, "batch", 1024),
    Setup(13, "length", 10_000),
    Setup(14, "heads", 16),
    Setup(15, "head dimension", 512),
    Setup(16, "MLP width", 32_768),
    Setup(17, "width", 8192),
    Setup(23, "tensor parallel degree", 8),
    Setup(24, "pipeline stages", 2),
    Setup(25, "devices", 16),
    Setup(32, "devices", 16),
    Setup(33, "slices of a head, m", 4),
    Setup(34, "head groups, n", 4),
    Setup(35, "devices", 16),
    Setup(37, "heads of a group", 4),
    Setup(38, "width of a slice", 128),
    Setup(43, "number of a list"),
    Setup(44, "number of a list"),
    Setup(64, "GPUs", 16),
    Setup(65, "GPUs", 16),
    Setup(73, "precision"),
    Setup(89, "devices", 16),
)

TWO_LEVEL = Paper(
    name="two_level",
    title="Attention split into head groups x head slices over 16 GPUs, 2-layer dense model",
    config=WIDE_LAYERS.replace(name="two_level", num_layers=2),
    workload=Workload(batch=1024, seq_len=10_000, microbatches=MICROBATCHES),
    strategies=("tensor_pipeline", "two_level", "data_parallel"),
    cluster=CLUSTER,
    claims=CLAIMS,
    setup=SETUP,
    assumptions=(
        *common_assumptions(microbatches=MICROBATCHES),
        Assumption(
            "precision",
            "float16 parameters and activations",
            "The paper says 'mixed precision (FP16)' without saying what stays wide.",
        ),
        Assumption(
            "how slices of a head become attention",
            "the cheapest exact way by closed forms: slices are exchanged for whole heads",
            "Not given; a softmax of each slice's own scores would be another model.",
        ),
        Assumption(
            "where the two levels run",
            "the four slices of a head beside each other in a node, groups over both nodes",
            "Not given; slices communicate more than groups do.",
        ),
    ),
    validations=(
        Validation("Batch, length, precision and model are the same for both methods",
                   "same_workload"),
        Validation("The two-level split is faster than the baseline", "faster:two_level"),
        Validation("It communicates less than the baseline", "fewer_bytes:two_level"),
        Validation("Its weights a device are 1/16 of the model's", "weights_share:two_level:16"),
        Validation("It scales beyond as many devices as heads", "needs:more than 16 devices"),
    ),
    small_workload=Workload(batch=16, seq_len=80, microbatches=4),
    proposed="two_level",
)  # fmt: skip
