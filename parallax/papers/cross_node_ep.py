"""One expert of each layer on each GPU (EP=16), four MoE layers. Its model is not built yet."""

from parallax.papers.common import MICROBATCHES, common_assumptions
from parallax.papers.paper import Assumption, Claim, PendingPaper, Validation

CROSS_NODE_EP = PendingPaper(
    name="cross_node_ep",
    title="One expert a GPU over 16 GPUs, 4-layer mixture of experts",
    reason="its model has 16 experts a layer, which this release cannot build",
    claims=(
        Claim("tensor_pipeline", "TPS", 120_000, "tokens/s", "tps"),
        Claim("expert_parallel", "TPS", 450_000, "tokens/s", "tps"),
        Claim("tensor_pipeline", "TPOT", 8.3, "ms", "inv_tps_us_printed_ms",
              "1/TPS is 8.3 us: printed 1000 times larger"),
        Claim("expert_parallel", "TPOT", 2.2, "ms", "inv_tps_us_printed_ms",
              "1/TPS is 2.2 us: printed 1000 times larger"),
        Claim("expert_parallel", "TPS improvement", 3.75, "times", "other"),
        Claim("expert_parallel", "TPOT improvement", 3.8, "times", "other"),
        Claim("expert_parallel", "compute utilisation", 100.0, "%", "other",
              "that every GPU has an expert does not say that it is busy"),
        Claim("", "weights of one expert", 512.0, "MB", "other",
              "one 8192 x 32768 FP16 matrix is 537 MB, and an expert has two or three"),
        Claim("expert_parallel", "weights of all GPUs", 8.0, "GB", "other",
              "one matrix of one layer a GPU: 16 experts x 4 layers are 69-103 GB"),
        Claim("tensor_pipeline", "weights of all GPUs", 65.0, "GB", "other",
              "a lower bound, '65 GB+'"),
    ),
    assumptions=(
        *common_assumptions(microbatches=MICROBATCHES),
        Assumption("experts a token", "2 of 16 (top-2)", "Not given."),
        Assumption(
            "the baseline's experts",
            "each expert split over the tensor axis",
            "'8 experts per stage, all on one GPU' beside '1/8 tensor shards' has two readings.",
        ),
    ),
    validations=(
        Validation("Exactly one expert of each layer is on each GPU", "needs:the expert strategy"),
        Validation("Expert parallelism is faster than the baseline", "faster:expert_parallel"),
    ),
)  # fmt: skip
