"""The figures of the compressed_layerwise paper on memory, caches and compression."""

from parallax.papers.derivations import memory
from parallax.papers.paper import Claim

_TP, _LW = "tensor_pipeline", "layerwise"

_BEFORE = (
    Claim("", "attention QKV weights", "100.7", "MB", "other", (27, 65), "4096 x 12288 x 2 B",
          memory.qkv_mb, otherwise="arithmetic error"),
    Claim("", "attention output weights", "33.6", "MB", "other", (28,), "4096 x 4096 x 2 B",
          memory.attention_output_mb, otherwise="arithmetic error"),
    Claim("", "one MLP matrix", "134.2", "MB", "other", (29, 30, 31),
          "4096 x 16384 x 2 B, of gate, up and down each", memory.mlp_matrix_mb,
          otherwise="arithmetic error"),
    Claim("", "norm weights", "0.016", "MB", "other", (32, 67), "2 x 4096 x 2 B", memory.norms_mb,
          otherwise="arithmetic error"),
    Claim("", "activations", "98.3", "MB", "other", (33, 68),
          "the printed product is 31.5 GB: printed 320 times smaller",
          memory.printed_activations_mb, otherwise="arithmetic error"),
    Claim("", "workspace", "10", "MB", "other", (34, 69), "nothing says what needs it"),
    Claim("", "uncompressed layer", "537", "MB", "other", (36,),
          "is the weights alone: the printed activations and workspace are not in the sum",
          memory.printed_layer_mb, otherwise="arithmetic error"),
    Claim("", "all layers", "8.59", "GB", "other", (37,), "16 times 537 MB",
          memory.all_printed_layers_gb, otherwise="arithmetic error"),
)  # fmt: skip

_PIPELINE = (
    Claim(_LW, "size reduction by INT8", "50", "%", "other", (44,), "one byte for two",
          memory.int8_cut_percent, otherwise="arithmetic error"),
    Claim(_LW, "accuracy kept by INT8", "99.5", "%", "other", (46,),
          "no task and no measurement is named"),
    Claim(_LW, "sparsity of the MLP", "50", "%", "other", (49, 66, 163), "two of four weights",
          memory.two_of_four_percent, otherwise="arithmetic error"),
    Claim(_LW, "further reduction by 2:4", "50", "%", "other", (50,),
          "leaves out the positions: half the INT8 weights with two bits each save 37.5 %",
          memory.sparse_int8_cut_percent, otherwise="arithmetic error"),
    Claim("", "activation reduction by checkpointing", "75", "%", "other", (54,),
          "98.3 to 24.6 MB; but a forward pass keeps nothing that recomputing could save",
          memory.activations_cut_percent, otherwise="arithmetic error"),
    Claim("", "further activation reduction", "20", "%", "other", (55,),
          "nothing says which operations; the final figure does not have it"),
    Claim("", "final activations", "24.6", "MB", "other", (56, 68),
          "has the 75 % of line 54 and not the 20 % of line 55",
          memory.activations_after_both_cuts_mb, otherwise="arithmetic error"),
    Claim("", "workspace reduction", "80", "%", "other", (59,), "10 to 2 MB",
          memory.workspace_cut_percent, otherwise="arithmetic error"),
    Claim("", "final workspace", "2", "MB", "other", (60, 69), "80 % less than 10 MB",
          memory.workspace_after_cut_mb, otherwise="arithmetic error"),
)  # fmt: skip

_AFTER = (
    Claim("", "attention weights to compress", "100.7", "MB", "other", (65,),
          "leaves out the output matrix of line 28", memory.attention_mb),
    Claim(_LW, "attention weights in INT8", "50.4", "MB", "other", (65,),
          "leaves out the output matrix of line 28", memory.attention_int8_mb),
    Claim("", "MLP weights to compress", "268.4", "MB", "other", (66,),
          "two of the three matrices of lines 29 to 31", memory.mlp_mb),
    Claim(_LW, "MLP weights in INT8 and 2:4", "67.1", "MB", "other", (66,),
          "starts from two of the three matrices and has no positions",
          memory.mlp_int8_sparse_mb),
    Claim(_LW, "norm weights in INT8", "0.008", "MB", "other", (67,), "half of line 32",
          memory.norms_int8_mb, otherwise="arithmetic error"),
    Claim(_LW, "compressed layer", "144.1", "MB", "other", (71, 72),
          "adds up, but from lines that leave matrices out: the weights alone come to 193 MB",
          memory.compressed_layer_mb),
    Claim(_LW, "further compressed layer", "49.5", "MB", "other", (72, 113),
          "no method is given; it needs about 1.5 bits a weight"),
)  # fmt: skip

_USE = (
    Claim(_TP, "cache hit rate", "23", "%", "other", (95,),
          "line 110 gives the same number as a share of the L2's capacity, not of the reads"),
    Claim(_LW, "cache hit rate", "98.5", "%", "other", (96, 200), "no counter is named"),
    Claim(_LW, "half width of the cache hit rate", "0.2", "%", "other", (200,),
          "no run is listed of the 100 it is said to come from"),
    Claim(_TP, "L2 in use", "11.5", "MiB", "other", (110,), "nothing says what is in it"),
    Claim(_TP, "L2 use", "23", "%", "other", (110,), "11.5 of 50 MB", memory.l2_used_percent,
          otherwise="arithmetic error"),
    Claim(_LW, "L2 use", "99", "%", "other", (113, 146, 187, 193),
          "49.5 of 50 MB, with as little behind it as the 49.5", memory.layer_of_l2_percent,
          otherwise="arithmetic error"),
    Claim(_TP, "HBM in use", "12", "GB", "other", (111,),
          "nothing says of what: weights are 0.54 GB a GPU, the batch's whole KV cache 21 GB"),
    Claim(_TP, "HBM use", "15", "%", "other", (111,), "12 of 80 GB", memory.hbm_used_percent,
          otherwise="arithmetic error"),
    Claim(_LW, "HBM use", "2", "%", "other", (114,), "nothing says of what"),
    Claim(_TP, "memory efficiency", "15", "%", "other", (95,), "is its use of HBM (line 111)",
          memory.hbm_share_claimed_percent),
    Claim(_LW, "memory efficiency", "99", "%", "other", (96,),
          "is its use of L2, in one column with the baseline's use of HBM; that would be 2 %",
          memory.hbm_share_claimed_percent),
    Claim(_LW, "perplexity degradation", "0.1", "%", "other", (164,),
          "an upper bound, 'less than'; no data set is named"),
)  # fmt: skip

MEMORY_CLAIMS = (*_BEFORE, *_PIPELINE, *_AFTER, *_USE)
