"""Contiguous layers grouped to fit one GPU's L2 cache, one group a GPU, sixteen dense layers."""

from parallax.papers.cache_layerwise_claims import CLAIMS, SETUP
from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.paper import Assumption, Paper, Validation
from parallax.workload import Workload

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
