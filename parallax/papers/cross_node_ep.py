"""The cross_node_ep paper: one expert of each layer per GPU (EP=16) against TP=8 x PP=2."""

from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.derivations import memory, speed
from parallax.papers.paper import Assumption, Claim, Paper, Setup, Validation
from parallax.workload import Workload

_TP, _EP = "tensor_pipeline", "expert_parallel"

CLAIMS = (
    Claim(_TP, "TPS", "120,000", "tokens/s", "tps", (64, 68),
          "one network card a GPU is no limit to the baseline"),
    Claim(_EP, "TPS", "450,000", "tokens/s", "tps", (65, 68),
          "two experts a token; half of what is sent crosses the network cards"),
    Claim(_TP, "TPOT", "8.3", "ms", "inv_tps_us_printed_ms", (64, 69),
          "1/TPS is 8.3 us: printed 1000 times larger",
          speed.inverse_tps_ms, otherwise="arithmetic error"),
    Claim(_EP, "TPOT", "2.2", "ms", "inv_tps_us_printed_ms", (65, 69),
          "1/TPS is 2.2 us: printed 1000 times larger",
          speed.inverse_tps_ms, otherwise="arithmetic error"),
    Claim(_EP, "TPS improvement", "3.75", "times", "other", (65, 68), "450,000 over 120,000",
          speed.tps_ratio, otherwise="arithmetic error"),
    Claim(_EP, "TPOT improvement", "3.8", "times", "other", (65, 69), "8.3 over 2.2",
          speed.tpot_ratio, otherwise="arithmetic error"),
    Claim(_EP, "TPOT improvement in full", "3.77", "times", "other", (69,), "8.3 over 2.2",
          speed.tpot_ratio, otherwise="arithmetic error"),
    Claim(_EP, "compute utilisation", "100", "%", "other", (70,),
          "what the printed TPS needs of peak FLOP/s as prompt tokens: an expert on every GPU does "
          "not say that it is busy", speed.compute_utilisation_percent),
    Claim(_TP, "experts of a layer a GPU", "8", "experts", "other", (38, 86),
          "a stage has whole layers, 16 experts of each over its 8 GPUs; eight on one GPU would "
          "leave six of eight without any", memory.experts_of_a_layer_a_gpu),
    Claim("", "one expert matrix", "512", "MiB", "other", (81, 86, 87),
          "MB is printed for MiB (537 MB); an expert has two of them, three if gated",
          memory.one_expert_matrix_mib, otherwise="arithmetic error"),
    Claim(_EP, "expert weights a GPU", "512", "MiB", "other", (83, 87),
          "one matrix: leaves out the second of an expert, and three of four layers",
          memory.experts_a_gpu_mib),
    Claim(_TP, "weights of all GPUs", "65", "GiB", "other", (86,),
          "printed as a lower bound, '65 GB+': 64 GiB of experts, 2 of attention, tables not in it",
          memory.all_layers_gib, "at most"),
    Claim(_EP, "weights of all GPUs", "8", "GiB", "other", (87,),
          "one matrix of one layer a GPU; the baseline's 65 GB are the same model (line 86)",
          memory.all_experts_gib),
)  # fmt: skip

SETUP = (
    Setup(1, "heading"),
    Setup(6, "layers", 4),
    Setup(7, "experts of a layer", 16),
    Setup(9, "precision"),
    Setup(12, "batch", 1024),
    Setup(13, "length", 10_000),
    Setup(14, "width", 8192),
    Setup(15, "tokens of a batch", 10_240_000),
    Setup(18, "heads", 16),
    Setup(19, "head dimension", 512),
    Setup(20, "width of all heads", 8192),
    Setup(23, "MLP width", 32_768),
    Setup(30, "tensor parallel degree", 8),
    Setup(31, "pipeline stages", 2),
    Setup(33, "GPUs", 16),
    Setup(37, "share of a tensor-parallel shard", 8),
    Setup(39, "GPUs of a stage", 8),
    Setup(46, "expert parallel degree", 16),
    Setup(47, "tensor parallel degree", 1),
    Setup(48, "pipeline stages", 1),
    Setup(49, "GPUs", 16),
    Setup(57, "experts of a layer", 16),
    Setup(74, "the GPU's name"),
)

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
