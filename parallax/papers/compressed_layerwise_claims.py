"""Every figure that the compressed_layerwise paper prints as a result, with what contradicts it."""

from parallax.papers.paper import Claim

_TP, _LW = "tensor_pipeline", "layerwise"
_CONSTANT = "one layer a GPU at any depth gives constant throughput, not linear"
_LOW = "one hidden state of 128 x 10000 x 4096 in FP16 is 10.5 GB: printed 1000 times smaller"

CLAIMS = (
    Claim(_TP, "TPS", 12_800, "tokens/s", "tps",
          "equals 128 sequences / 10 ms, so a decode step at batch 128 fits the figure; at length "
          "10000 with FP16 KV the bound is 9.7 k (perfect split) or 5.6 k tokens/s (16 stages)"),
    Claim(_LW, "TPS", 15_360, "tokens/s", "tps",
          "cache_layerwise prints the same figures for three times the weights a layer"),
    Claim(_TP, "TPOT", 0.078, "ms", "inv_tps", "exactly 1/TPS"),
    Claim(_LW, "TPOT", 0.065, "ms", "inv_tps", "exactly 1/TPS"),
    Claim(_LW, "TPS improvement", 20.0, "%", "other", "printed with +/- 0.5 % over 100 runs"),
    Claim(_LW, "TPOT reduction", 17.0, "%", "other", "printed with +/- 0.3 % over 100 runs"),
    Claim(_TP, "cache hit rate", 23.0, "%", "other",
          "is 11.5 MB of a 50 MB L2: a share of the capacity, not of the reads"),
    Claim(_LW, "cache hit rate", 98.5, "%", "other", "printed with +/- 0.2 % over 100 runs"),
    Claim(_TP, "memory efficiency", 15.0, "%", "other", "is 12 of 80 GB of HBM: a use, not a gain"),
    Claim(_LW, "memory efficiency", 99.0, "%", "other",
          "is 49.5 of 50 MB of L2, beside a baseline figure that is about HBM"),
    Claim(_TP, "HBM use", 12.0, "GB", "other"),
    Claim(_LW, "HBM use", 2.0, "%", "other"),
    Claim("", "weights and buffers a layer, FP16", 537.0, "MB", "other",
          "is the weights alone: the printed activations and workspace are not in the sum"),
    Claim("", "activations a layer", 98.3, "MB", "other",
          "128 x 10000 x 4096 x 2 B x 3 is 31.5 GB: printed 320 times smaller"),
    Claim(_LW, "attention weights a layer, INT8", 50.4, "MB", "other",
          "leaves out the output matrix: four matrices are 67.1 MB"),
    Claim(_LW, "MLP weights a layer, INT8 and 2:4", 67.1, "MB", "other",
          "starts from two of the three matrices and has no index bits: 126 MB with both"),
    Claim(_LW, "compressed layer", 144.1, "MB", "other",
          "weights alone are 193 MB with the MLP sparse, 168 MB with attention sparse too"),
    Claim(_LW, "further compressed layer", 49.5, "MB", "other",
          "no method is given; it needs about 1.5 bits a weight"),
    Claim(_TP, "bytes of one all-reduce", 67.0, "MB", "other",
          "a microbatch of 16 x 10000 x 4096 in FP16 is 1.31 GB, and a layer has two"),
    Claim(_TP, "bytes of all all-reduces", 1.07, "GB", "other", "16 times the figure above"),
    Claim(_TP, "bytes of a stage transfer", 10.5, "MB", "other", _LOW),
    Claim(_TP, "bytes of all stage transfers", 84.0, "MB", "other",
          "8 microbatches are charged a whole batch each, and each is 1000 times larger"),
    Claim(_LW, "bytes of a layer-to-layer transfer", 10.5, "MB", "other", _LOW),
    Claim(_LW, "bytes of all layer-to-layer transfers", 157.5, "MB", "other", "157 GB, as above"),
    Claim(_LW, "TPS with 64 layers on 64 GPUs", 61_440, "tokens/s", "other", _CONSTANT),
    Claim(_LW, "TPS with 32 layers on 32 GPUs", 30_720, "tokens/s", "other", _CONSTANT),
    Claim(_LW, "TPS with 8 layers on 8 GPUs", 7_680, "tokens/s", "other", _CONSTANT),
    Claim(_TP, "power", 11.2, "kW", "other", "16 times an H100's power limit of 700 W"),
    Claim(_LW, "power", 10.4, "kW", "other", "650 W a GPU; no measurement is described"),
    Claim(_TP, "energy efficiency", 1.14, "tokens/J", "other"),
    Claim(_LW, "energy efficiency", 1.48, "tokens/J", "other"),
    Claim(_LW, "accuracy kept by INT8", 99.5, "%", "other"),
    Claim(_LW, "perplexity degradation", 0.1, "%", "other", "an upper bound, 'less than'"),
    Claim(_LW, "throughput lost with one device", 6.25, "%", "other",
          "the layer is gone, so all throughput is until it is placed again; then one GPU holds "
          "two layers and about half remains"),
    Claim(_LW, "recovery from cache pressure", 100.0, "ms", "other", "an upper bound, 'less than'"),
)  # fmt: skip
