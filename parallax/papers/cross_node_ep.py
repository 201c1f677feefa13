"""One expert of each layer on each GPU (EP=16) beside TP=8 x PP=2, four layers of 16 experts."""

from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.paper import Assumption, Claim, Paper, Validation
from parallax.workload import Workload

CROSS_NODE_EP = Paper(
    name="cross_node_ep",
    title="One expert a GPU over 16 GPUs, 4-layer mixture of experts",
    config=WIDE_LAYERS.replace(
        name="cross_node_ep", num_layers=4, num_experts=16, experts_per_token=2
    ),
    workload=Workload(batch=1024, seq_len=10_000, microbatches=MICROBATCHES),
    strategies=(
        "tensor_pipeline", "tensor_pipeline_colocated", "expert_parallel", "expert_parallel_nodes",
    ),
    cluster=CLUSTER,
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
        Assumption("experts a token", "2 of 16 (top-2), none dropped", "Not given."),
        Assumption(
            "the baseline's experts",
            "both readings run: each expert split over the tensor axis (tensor_pipeline), or whole "
            "experts dealt out over it, two of a layer a GPU (tensor_pipeline_colocated)",
            "'8 experts per stage, all on one GPU' beside '1/8 tensor shards' has two readings; "
            "taken literally, eight on one GPU would leave six of eight GPUs without any.",
        ),
        Assumption(
            "routing behind FLOPs and ragged bytes",
            "every expert exactly as often (uniform)",
            "Not given; trained routers are skewed, which makes the busiest GPU slower.",
        ),
    ),
    validations=(
        Validation("Exactly one expert of each layer is on each GPU",
                   "one_expert_a_device:expert_parallel"),
        Validation("Expert parallelism is faster than the baseline", "faster:expert_parallel"),
    ),
    small_workload=Workload(batch=16, seq_len=80, microbatches=4),
    proposed="expert_parallel",
)  # fmt: skip
