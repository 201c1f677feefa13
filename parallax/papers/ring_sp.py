"""Ring Attention + Sequence Parallelism beside TP=8 x PP=2, four dense layers."""

from parallax.papers.common import CLUSTER, MICROBATCHES, WIDE_LAYERS, common_assumptions
from parallax.papers.paper import Assumption, Paper, Validation
from parallax.papers.ring_sp_claims import CLAIMS, SETUP
from parallax.workload import Workload

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
