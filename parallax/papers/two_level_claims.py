"""Every figure of the two_level paper: where it stands, what it comes to, and its setup lines."""

from parallax.papers.derivations import memory, speed
from parallax.papers.paper import Claim, Setup

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
