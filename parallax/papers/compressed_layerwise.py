"""The layer-wise scheme with INT8 weights and 2:4 sparsity, sixteen gated layers of width 4096."""

from parallax.models.config import ModelConfig
from parallax.papers.common import CLUSTER, VOCAB_SIZE, common_assumptions
from parallax.papers.compressed_layerwise_claims import CLAIMS
from parallax.papers.compressed_layerwise_setup import SETUP
from parallax.papers.paper import Assumption, Paper, Validation
from parallax.workload import Workload

COMPRESSED_LAYERWISE = Paper(
    name="compressed_layerwise",
    title="One INT8, 2:4-sparse layer a GPU over 16 GPUs, 16-layer gated dense model",
    config=ModelConfig(
        name="compressed_layerwise",
        num_layers=16,
        d_model=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        d_ff=16384,
        vocab_size=VOCAB_SIZE,
        mlp="gated",
        norm="rmsnorm",
        positions="rope",
        causal=True,
        dtype="float16",
    ),
    workload=Workload(batch=128, seq_len=10_000, microbatches=8),
    strategies=("tensor_pipeline", "layerwise", "data_parallel"),
    cluster=CLUSTER,
    claims=CLAIMS,
    setup=SETUP,
    assumptions=(
        *common_assumptions(mlp=None),
        Assumption(
            "activation of the gate", "SiLU", "Three MLP matrices are given, the activation is not."
        ),
        Assumption(
            "precision",
            "float16, and its INT8 and 2:4 with --compression=int8,int8+2:4",
            "The paper's baseline is FP16; INT8 and 2:4 sparsity change the function, so they are "
            "asked for, for all strategies alike.",
        ),
        Assumption(
            "INT8", "weights, one float32 scale an output channel; products in float16 (W8A16)",
            'The paper says "per-channel scaling" and "INT8 (compute after compression)"; w8a8 '
            "rounds activations too, one scale a token.",
        ),
        Assumption(
            "what is sparse", "the MLP, two of four by magnitude along the inputs, two bits a "
            "position", "Its tables halve the MLP alone, and count no positions.",
        ),
        Assumption(
            "norms", "float16, not INT8", "A deviation: the paper stores them in INT8, which saves "
            "8 kB of a layer's 537 MB.",
        ),
    ),
    validations=(
        Validation("A compressed layer fits the L2 cache of one GPU",
                   "compressed_layer_fits_cache"),
        Validation("The layers can be dealt evenly to 16 GPUs", "layers_deal_out"),
        Validation("Layer-wise deployment is faster than the baseline", "faster:layerwise"),
        Validation("Perplexity worsens by less than 0.1 % under INT8 and 50 % sparsity",
                   "needs:trained weights of this width; a small model's figures are below"),
        Validation("98.5 % of weight reads hit the cache",
                   "needs:cache counters of a real GPU; modelled rates are below"),
        Validation("Adapting to cache pressure takes less than 100 ms",
                   "needs:GPUs; switches timed on CPUs, and modelled, are below"),
        Validation("Throughput grows linearly from 8 to 64 layers with as many GPUs",
                   "grows_linearly"),
    ),
    small_workload=Workload(batch=16, seq_len=80, microbatches=4),
    proposed="layerwise",
    compression=("int8", "int8+2:4"),
)  # fmt: skip
