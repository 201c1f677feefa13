"""The cache_layerwise paper: sixteen dense layers, in groups per GPU that fit its L2 cache."""

from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.derivations import speed
from parallax.papers.paper import Assumption, Claim, Paper, Setup, Validation
from parallax.workload import Workload

_TP, _LW = "tensor_pipeline", "layerwise"

CLAIMS = (
    Claim(_TP, "TPS", "12,800", "tokens/s", "tps", (36, 40),
          "compressed_layerwise prints the same figure for a third of the weights a layer",
          speed.tps_as_compressed_layerwise),
    Claim(_LW, "TPS", "15,360", "tokens/s", "tps", (37, 40),
          "compressed_layerwise prints the same figure for a third of the weights a layer",
          speed.tps_as_compressed_layerwise),
    Claim(_TP, "TPOT", "0.078", "ms", "inv_tps", (36, 41), "1/TPS",
          speed.inverse_tps_ms, otherwise="arithmetic error"),
    Claim(_LW, "TPOT", "0.065", "ms", "inv_tps", (37, 41), "1/TPS",
          speed.inverse_tps_ms, otherwise="arithmetic error"),
    Claim(_LW, "TPS improvement", "20", "%", "other", (40,), "15,360 over 12,800",
          speed.tps_gain_percent, otherwise="arithmetic error"),
    Claim(_LW, "TPOT reduction", "17", "%", "other", (41,), "0.065 beside 0.078",
          speed.tpot_cut_percent, otherwise="arithmetic error"),
)  # fmt: skip

SETUP = (
    Setup(1, "heading"),
    Setup(6, "GPUs", 16),
    Setup(7, "GPUs", 16),
    Setup(8, "precision"),
    Setup(11, "layers", 16),
    Setup(13, "batch", 1024),
    Setup(14, "length", 10_000),
    Setup(15, "heads", 16),
    Setup(16, "head dimension", 512),
    Setup(17, "MLP width", 32_768),
    Setup(18, "width", 8192),
    Setup(22, "GPUs of the baseline", 16),
    Setup(23, "stages of the baseline", 2),
    Setup(27, "layers over GPUs", 16),
    Setup(28, "the cache's name"),
    Setup(45, "tensor parallel degree", 8),
    Setup(51, "MLP width", 32_768),
    Setup(52, "width", 8192),
    Setup(53, "batch", 1024),
    Setup(54, "the cache's name"),
    Setup(57, "number of a list"),
    Setup(58, "GPUs", 16),
    Setup(59, "number of a list"),
    Setup(60, "number of a list"),
)

CACHE_LAYERWISE = Paper(
    name="cache_layerwise",
    title="Layer groups that fit the cache, one a GPU, over 16 GPUs, 16-layer dense model",
    config=WIDE_LAYERS.replace(name="cache_layerwise", num_layers=16),
    workload=Workload(batch=1024, seq_len=10_000, microbatches=MICROBATCHES),
    strategies=("tensor_pipeline", "layerwise", "data_parallel"),
    cluster=CLUSTER,
    claims=CLAIMS,
    setup=SETUP,
    assumptions=(
        *common_assumptions(microbatches=MICROBATCHES),
        Assumption(
            "model type",
            "transformer layers with attention",
            "The paper says 'fully connected network' and gives heads and head dimensions.",
        ),
        Assumption(
            "cache",
            "L2: 50 MiB on an H100",
            "The paper says 'SRAM/L2'; all shared memory of an H100 together is 31 MB, less.",
        ),
    ),
    validations=(
        Validation("Each group of layers fits the cache of one GPU", "layer_fits_cache"),
        Validation("The layers can be dealt evenly to 16 GPUs", "layers_deal_out"),
        Validation("Layer-wise deployment is faster than the baseline", "faster:layerwise"),
        Validation("Batch, length, precision and model are the same for both methods",
                   "same_workload"),
    ),
    small_workload=Workload(batch=16, seq_len=80, microbatches=4),
    proposed="layerwise",
)  # fmt: skip
