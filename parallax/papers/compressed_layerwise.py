"""The compressed_layerwise paper: sixteen gated layers in INT8 with 2:4 sparsity, one per GPU."""

from parallax.models.config import ModelConfig
from parallax.papers.common import CLUSTER, VOCAB_SIZE, common_assumptions
from parallax.papers.compressed_layerwise_memory import MEMORY_CLAIMS
from parallax.papers.derivations import machine, sending, speed
from parallax.papers.paper import Assumption, Claim, Paper, Setup, Validation
from parallax.workload import Workload

SETUP = (
    Setup(1, "heading"),
    Setup(6, "GPUs", 16),
    Setup(14, "layers", 16),
    Setup(16, "width", 4096),
    Setup(17, "MLP width", 16_384),
    Setup(18, "heads", 32),
    Setup(19, "head dimension", 128),
    Setup(20, "length", 10_000),
    Setup(21, "batch", 128),
    Setup(22, "precision"),
    Setup(43, "number of a list"),
    Setup(48, "number of a list"),
    Setup(53, "number of a list"),
    Setup(58, "number of a list"),
    Setup(77, "tensor parallel degree", 8),
    Setup(78, "tensor parallel degree", 8),
    Setup(81, "pipeline stages", 2),
    Setup(82, "last layer of the first stage", 8),
    Setup(83, "last layer of the second stage", 16),
    Setup(85, "batch", 128),
    Setup(86, "sequences of a microbatch", 16),
    Setup(87, "microbatches", 8),
    Setup(119, "GPUs of an all-reduce", 8),
    Setup(137, "layers", 16),
    Setup(140, "layers, one a device", 16),
    Setup(143, "layers of another model", 64),
    Setup(162, "precision"),
    Setup(184, "layers of another model", 32),
    Setup(190, "layers of another model", 8),
    Setup(197, "runs behind an average", 100),
)

_TP, _LW = "tensor_pipeline", "layerwise"
_CONSTANT = "a stage of one layer takes as long at any depth: throughput stays at 16 layers' figure"

_MACHINE = (
    Claim("", "NVLink a GPU, both directions", "900", "GB/s", "other", (7,),
          "450 GB/s each way", machine.nvlink_both_ways_gb_per_s),
    Claim("", "L2 a GPU", "50", "MiB", "other", (9, 42, 110, 113, 139),
          "MB is printed for MiB (52.4 MB)", machine.l2_mib),
    Claim("", "L1 an SM", "256", "KiB", "other", (10,),
          "L1 and shared memory together, of which programs get 228 KiB as shared memory",
          machine.smem_kib, "at least"),
    Claim("", "HBM a GPU", "80", "GiB", "other", (11, 111),
          "nominal; the driver leaves a program 79.1 GiB", machine.memory_gib, "at least"),
    Claim("", "HBM bandwidth a GPU", "3.35", "TB/s", "other", (11,),
          "what the driver reports", machine.hbm_tb_per_s),
)  # fmt: skip

_SPEED = (
    Claim(_TP, "TPS", "12,800", "tokens/s", "tps", (95, 101, 102, 155),
          "equals 128 sequences in 10 ms; cache_layerwise prints it for three times the weights",
          speed.tps_as_cache_layerwise),
    Claim(_LW, "TPS", "15,360", "tokens/s", "tps", (96, 101, 156),
          "cache_layerwise prints the same figure for three times the weights a layer; limits are "
          "FP16's, INT8 raises them",
          speed.tps_as_cache_layerwise),
    Claim(_TP, "TPOT", "0.078", "ms", "inv_tps", (95, 105, 106), "1/TPS",
          speed.inverse_tps_ms, otherwise="arithmetic error"),
    Claim(_LW, "TPOT", "0.065", "ms", "inv_tps", (96, 105), "1/TPS",
          speed.inverse_tps_ms, otherwise="arithmetic error"),
    Claim(_LW, "TPS gained", "2,560", "tokens/s", "other", (101, 102), "15,360 less 12,800",
          speed.tps_gain, otherwise="arithmetic error"),
    Claim(_LW, "TPS improvement", "20", "%", "other", (102, 198), "15,360 over 12,800",
          speed.tps_gain_percent, otherwise="arithmetic error"),
    Claim(_LW, "TPOT saved", "0.013", "ms", "other", (105, 106), "0.078 less 0.065",
          speed.tpot_cut, otherwise="arithmetic error"),
    Claim(_LW, "TPOT reduction", "17", "%", "other", (106, 199), "0.013 of 0.078",
          speed.tpot_cut_percent, otherwise="arithmetic error"),
    Claim(_LW, "half width of the TPS improvement", "0.5", "%", "other", (198,),
          "no run is listed of the 100 it is said to come from"),
    Claim(_LW, "half width of the TPOT reduction", "0.3", "%", "other", (199,),
          "no run is listed of the 100 it is said to come from"),
    Claim(_LW, "GPUs for 64 layers", "64", "GPUs", "other", (144,),
          "one layer a GPU", machine.sixty_four_layers),
    Claim(_LW, "GPUs for 32 layers", "32", "GPUs", "other", (185,),
          "one layer a GPU", machine.thirty_two_layers),
    Claim(_LW, "GPUs for 8 layers", "8", "GPUs", "other", (191,),
          "one layer a GPU", machine.eight_layers),
    Claim(_LW, "TPS improvement with 64 layers", "4", "times", "other", (145,), _CONSTANT,
          speed.unchanged),
    Claim(_LW, "TPS with 64 layers", "61,440", "tokens/s", "other", (145,), _CONSTANT,
          speed.tps_of_equal_stages),
    Claim(_LW, "TPS with 32 layers", "30,720", "tokens/s", "other", (186,), _CONSTANT,
          speed.tps_of_equal_stages),
    Claim(_LW, "TPS with 8 layers", "7,680", "tokens/s", "other", (192,), _CONSTANT,
          speed.tps_of_equal_stages),
    Claim(_LW, "throughput lost with one device", "6.25", "%", "other", (173,),
          "the layer is gone (line 171): all throughput is until it is placed again, then one GPU "
          "holds two layers and about half remains", speed.lost_after_placing_again_percent),
    Claim(_LW, "recovery from cache pressure", "100", "ms", "other", (178,),
          "an upper bound, 'less than', with nothing behind it"),
)  # fmt: skip

_SENT = (
    Claim(_TP, "bytes of one all-reduce", "67", "MB", "other", (121, 122),
          "a microbatch of 16 x 10000 x 4096 in FP16 is 20 times larger",
          sending.microbatch_state_mb),
    Claim(_TP, "bytes of all all-reduces", "1.07", "GB", "other", (122,),
          "16 times the figure above; a layer has two, and there are 8 microbatches",
          sending.all_reduced_gb),
    Claim(_TP, "bytes of a stage transfer", "10.5", "MB", "other", (126, 127),
          "the printed product is 10.5 GB", sending.hidden_state_mb, otherwise="arithmetic error"),
    Claim(_TP, "bytes of all stage transfers", "84", "MB", "other", (127,),
          "8 microbatches are charged a whole batch each, 1000 times too small",
          sending.all_handoffs_mb),
    Claim(_LW, "layer transitions", "15", "transfers", "other", (131, 133),
          "between 16 layers", sending.layer_transitions),
    Claim(_LW, "bytes of a layer-to-layer transfer", "10.5", "MB", "other", (132, 133),
          "the printed product is 10.5 GB", sending.hidden_state_mb, otherwise="arithmetic error"),
    Claim(_LW, "bytes of all layer-to-layer transfers", "157.5", "MB", "other", (133,),
          "15 times the figure above, 1000 times too small", sending.all_handoffs_mb),
)  # fmt: skip

_ENERGY = (
    Claim(_TP, "power a GPU", "700", "W", "other", (151,),
          "an H100's power limit; no measurement is described", speed.power_limit_w, "at most",
          "beyond the physical bound"),
    Claim(_LW, "power a GPU", "650", "W", "other", (152,), "no measurement is described"),
    Claim(_TP, "power", "11.2", "kW", "other", (151, 155), "16 times 700 W", speed.power_kw,
          otherwise="arithmetic error"),
    Claim(_LW, "power", "10.4", "kW", "other", (152, 156), "16 times 650 W", speed.power_kw,
          otherwise="arithmetic error"),
    Claim(_TP, "energy efficiency", "1.14", "tokens/J", "other", (155,), "12,800 over 11.2 kW",
          speed.tokens_per_joule, otherwise="arithmetic error"),
    Claim(_LW, "energy efficiency", "1.48", "tokens/J", "other", (156,), "15,360 over 10.4 kW",
          speed.tokens_per_joule, otherwise="arithmetic error"),
    Claim(_LW, "energy efficiency improvement", "30", "%", "other", (157,),
          "from the unrounded quotients; 1.48 over 1.14 gives 29.8",
          speed.energy_gain_percent, otherwise="arithmetic error"),
)  # fmt: skip

CLAIMS = (*_MACHINE, *_SPEED, *_SENT, *_ENERGY, *MEMORY_CLAIMS)

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
