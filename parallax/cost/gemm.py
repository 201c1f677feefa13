"""The time of a matrix product: whole waves of tiles over the SMs, or the bytes it moves.

A library splits the output into tiles, one per SM at a time, and sometimes the contracting dim too;
the last wave of tiles may be nearly empty. The model takes the best tile, as an autotuner would.
"""

import math
from dataclasses import dataclass

# Output tiles [m, n] that libraries have on Hopper, and into how many parts they split k.
TILES = ((256, 128), (128, 256), (128, 128), (64, 256), (256, 64), (64, 128), (128, 64), (64, 64))
SPLITS = (1, 2, 4, 8)
_LEAST_CUT = 128


@dataclass(frozen=True)
class GemmRates:
    """The fitted rates of one GPU's matrix products in one dtype.

    Attributes:
      flops_per_s: FLOP/s of all SMs in the main loop of a large tile.
      bytes_per_s: bytes of operands and result together, through memory, per second.
      start_s: seconds from the launch to the first product, and after the last.
      tile_s: seconds per tile besides its products: pipeline fill and epilogue.
      small_tile: exponent: a tile of half the largest's elements runs at 2**-small_tile its rate.
    """

    flops_per_s: float
    bytes_per_s: float
    start_s: float
    tile_s: float
    small_tile: float


def gemm_seconds(
    rates: GemmRates,
    sm_count: int,
    batch: int,
    m: int,
    n: int,
    k: int,
    n_bytes: float,
) -> float:
    """Estimate the seconds of the product batch x [m, k] x [k, n].

    Args:
      rates: rates of the GPU and dtype.
      sm_count: streaming multiprocessors of the GPU.
      batch, m, n, k: sizes.
      n_bytes: bytes of operands and result that pass through memory.
    """
    if not batch * m * n * k:
        return rates.start_s
    best = math.inf
    for tile_m, tile_n in TILES:
        tiles = batch * -(-m // tile_m) * -(-n // tile_n)
        size = tile_m * tile_n
        per_sm = rates.flops_per_s / sm_count * (size / (256 * 128)) ** rates.small_tile
        for split in SPLITS:
            waves = -(-tiles * split // sm_count)
            # Partial sums of a split k are written and read in float32.
            again = 0.0 if split == 1 else 8.0 * batch * m * n * split / rates.bytes_per_s
            # No part is shallower than a pipeline, so that a deeper product is never faster.
            deep = k if split == 1 else max(-(-k // split), _LEAST_CUT)
            each = 2.0 * size * deep / per_sm + rates.tile_s
            best = min(best, waves * each + again)
    return rates.start_s + max(best, n_bytes / rates.bytes_per_s)
