"""Seconds of a matrix product: whole waves of tiles over the SMs, or the bytes it moves.

A library cuts the output into tiles, one to an SM at a time, and sometimes the contracted dim too;
the last wave of tiles may be nearly empty. The model takes the best tile as an autotuner would.
"""

import math
from dataclasses import dataclass

# Tiles [m, n] of the output that libraries have on Hopper, and pieces of k they cut.
TILES = ((256, 128), (128, 256), (128, 128), (64, 256), (256, 64), (64, 128), (128, 64), (64, 64))
SPLITS = (1, 2, 4, 8)
_LEAST_CUT = 128


@dataclass(frozen=True)
class GemmRates:
    """How fast one GPU multiplies one dtype; fitted.

    Attributes:
      flops_per_s: of all SMs, deep inside a large tile.
      bytes_per_s: of operands and result together, through memory.
      start_s: launch until the first product, and the way out.
      tile_s: of each tile besides its products: pipeline fill, epilogue.
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
    """Modelled seconds of batch x [m, k] x [k, n].

    Args:
      rates: of the GPU and dtype.
      sm_count: streaming multiprocessors.
      batch, m, n, k: sizes.
      n_bytes: that have to pass memory: operands and result.
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
            # Partial sums of a cut k are written and read in float32.
            again = 0.0 if split == 1 else 8.0 * batch * m * n * split / rates.bytes_per_s
            # No cut piece is shallower than a pipeline: a deeper product is then never faster.
            deep = k if split == 1 else max(-(-k // split), _LEAST_CUT)
            each = 2.0 * size * deep / per_sm + rates.tile_s
            best = min(best, waves * each + again)
    return rates.start_s + max(best, n_bytes / rates.bytes_per_s)
