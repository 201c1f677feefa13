"""Layer-wise deployment with INT8 and 2:4 weights beside TP=8 x PP=2, a 4096-wide gated model."""

from parallax.models.config import ModelConfig
from parallax.papers.assumed import CAUSAL, CLUSTER, NORM, PREFILL, ROPE, VOCAB
from parallax.papers.paper import Assumption, Claim, Paper, Validation
from parallax.workload import Workload

COMPRESSED_LAYERWISE = Paper(
    name="compressed_layerwise",
    title="Layer-wise deployment with INT8 and 2:4 sparsity, 16-layer dense model",
    config=ModelConfig(
        name="compressed_layerwise",
        num_layers=16,
        d_model=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        d_ff=16384,
        vocab_size=32000,
        mlp="gated",
        dtype="float16",
    ),
    workload=Workload(batch=128, seq_len=10_000, microbatches=8),
    strategies=("tensor_pipeline", "ring_sequence", "data_parallel"),
    proposed="layerwise",
    missing="the paper's own layerwise strategy and its compression are not in this release",
    cluster="h100_2x8",
    claims=(
        Claim("tensor_pipeline", "TPS", 12_800, "tokens/s", "tps",
              "128 sequences / 10 ms: fits a decode reading at batch 128"),
        Claim("layerwise", "TPS", 15_360, "tokens/s", "tps",
              "at L=10000 with FP16 KV and MHA, 16 H100 decode at most 9.7 k tokens/s"),
        Claim("tensor_pipeline", "TPOT", 0.078, "ms", "inv_tps", "exactly 1 / 12,800 s"),
        Claim("layerwise", "TPOT", 0.065, "ms", "inv_tps", "exactly 1 / 15,360 s"),
        Claim("tensor_pipeline", "L2 use", 23, "%", "other",
              "printed as a hit rate; 11.5 of 50 MB is a utilisation"),
        Claim("layerwise", "L2 use", 98.5, "%", "other", "printed as a hit rate"),
        Claim("tensor_pipeline", "memory efficiency", 15, "%", "other", "12 of 80 GB of HBM"),
        Claim("layerwise", "memory efficiency", 99, "%", "other", "49.5 of 50 MB of L2: another memory"),
        Claim("layerwise", "layer, uncompressed", 537, "MB", "other",
              "the three MLP matrices alone are 402 MB in FP16; the compression table uses 268 MB"),
        Claim("layerwise", "layer, compressed", 144.1, "MB", "other",
              "INT8 and 2:4 with index bits give 168 MB (193 MB with only the MLP sparse)"),
        Claim("layerwise", "layer, final", 49.5, "MB", "other",
              "no method given; it needs about 1.5 bits a weight"),
        Claim("layerwise", "transfer between layers", 10.5, "MB", "other",
              "one hidden state is 10.5 GB: printed 1000 times smaller"),
        Claim("layerwise", "throughput lost to one failure", 6.25, "%", "other",
              "with the layer unavailable and no spare all of it, until the layer is placed again"),
        Claim("tensor_pipeline", "energy", 1.14, "tokens/J", "other", "12,800 / 11.2 kW"),
        Claim("layerwise", "energy", 1.48, "tokens/J", "other", "15,360 / 10.4 kW"),
    ),
    assumptions=(
        CAUSAL, VOCAB, NORM, ROPE, CLUSTER, PREFILL,
        Assumption("kv_cache", "float16, not compressed", "the paper compresses weights only"),
    ),
    validations=(
        Validation("each layer fits the 50 MB L2 after compression", "layers_fit_l2_compressed"),
        Validation("throughput is linear in layers and devices", "sweep_devices"),
        Validation("perplexity degrades by less than 0.1 %", "compression_quality"),
    ),
    small_workload=Workload(batch=16, seq_len=80, microbatches=4),
)  # fmt: skip
