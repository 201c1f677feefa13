"""Two-level attention partitioning (4 head groups x 4 slices of each head), two dense layers."""

from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.paper import Assumption, Paper, Validation
from parallax.papers.two_level_claims import CLAIMS, SETUP
from parallax.workload import Workload

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
