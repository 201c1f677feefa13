"""One expert of each layer on each GPU (EP=16) beside TP=8 x PP=2, four layers of 16 experts."""

from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.cross_node_ep_claims import CLAIMS, SETUP
from parallax.papers.paper import Assumption, Paper, Validation
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
    claims=CLAIMS,
    setup=SETUP,
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
