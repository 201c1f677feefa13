"""Expert parallelism with one expert a GPU. Its claims as data; its model comes with the experts."""

from parallax.papers.paper import Claim

NOT_YET = (
    "paper 'cross_node_ep': its model has 16 experts a layer, which this release cannot build. "
    "Use ring_sp, two_level, cache_layerwise or compressed_layerwise."
)

CLAIMS = (
    Claim("tensor_pipeline", "TPS", 120_000, "tokens/s", "tps"),
    Claim("expert_parallel", "TPS", 450_000, "tokens/s", "tps"),
    Claim("tensor_pipeline", "TPOT", 8.3, "ms", "inv_tps_us_printed_ms",
          "1 / 120,000 s is 8.3 us: printed 1000 times larger"),
    Claim("expert_parallel", "TPOT", 2.2, "ms", "inv_tps_us_printed_ms",
          "1 / 450,000 s is 2.2 us: printed 1000 times larger"),
    Claim("expert_parallel", "weights a GPU", 512, "MB", "other",
          "one 8192 x 32768 matrix is 537 MB and an expert has two or three: 4.3 to 6.4 GB a GPU"),
)  # fmt: skip
