"""The time of a matrix product: whole waves of tiles over the SMs, beside the bytes it moves.

A library splits the output into tiles, one per SM at a time, and sometimes the contracting dim too;
the last wave of tiles may be nearly empty. The model takes the best tile, as an autotuner would.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

# Output tiles [m, n] that libraries have, and into how many parts they split k.
TILES = ((256, 128), (128, 256), (128, 128), (64, 256), (256, 64), (64, 128), (128, 64), (64, 64))
SPLITS = (1, 2, 3, 4, 6, 8, 16)
_LARGEST = 256 * 128
_LEAST_CUT = 128
_TILE_M, _TILE_N, _SPLIT = (
    np.array(column, float)
    for column in zip(*((m, n, s) for (m, n), s in itertools.product(TILES, SPLITS)), strict=True)
)


@dataclass(frozen=True)
class GemmRates:
    """The fitted rates of one GPU's matrix products in one dtype.

    Attributes:
      flops_per_s: FLOP/s of all SMs in the main loop of a tile.
      bytes_per_s: bytes of operands and result together, through memory, per second.
      start_s: seconds from the launch to the first product, and after the last.
      tile_s: seconds per tile of 256 x 128 besides its products, pipeline fill and epilogue; a
        smaller tile takes less in proportion.
      split_s: seconds that splitting k adds.
      overlap: exponent p of (a^p + b^p)^(1/p), where a is the time of the tiles and b that of the
        bytes: 1 adds them up, more hides the shorter one.
      sustained_flops_per_s: FLOP/s that a power limit allows in the long run; kernels are measured
        in short runs, which are faster.
    """

    flops_per_s: float
    bytes_per_s: float
    start_s: float
    tile_s: float
    split_s: float
    overlap: float
    sustained_flops_per_s: float


@functools.lru_cache(maxsize=1 << 16)
def gemm_seconds(
    rates: GemmRates,
    sm_count: int,
    batch: int,
    m: int,
    n: int,
    k: int,
    n_bytes: float,
) -> float:
    """Estimate the seconds of the product batch x [m, k] x [k, n], run alone.

    Args:
      rates: rates of the GPU and dtype.
      sm_count: streaming multiprocessors of the GPU.
      batch, m, n, k: sizes.
      n_bytes: bytes of operands and result that pass through memory.
    """
    if not batch * m * n * k:
        return rates.start_s
    sizes = (np.array([float(x)]) for x in (batch, m, n, k, n_bytes))
    return float(gemm_times(rates, sm_count, *sizes)[0])


def gemm_times(
    rates: GemmRates,
    sm_count: int,
    batch: np.ndarray,
    m: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
    n_bytes: np.ndarray,
) -> np.ndarray:
    """Estimate the seconds of many products, as `gemm_seconds` does; sizes are float arrays [r]."""
    batch, m, n, k = (x[:, None] for x in (batch, m, n, k))
    tiles = batch * np.ceil(m / _TILE_M) * np.ceil(n / _TILE_N)
    area = _TILE_M * _TILE_N
    waves = np.ceil(tiles * _SPLIT / sm_count)
    # Partial sums of a split k are written and read in float32.
    again = rates.split_s + 8.0 * batch * m * n * _SPLIT / rates.bytes_per_s
    # No part is shallower than a pipeline, so that a deeper product is never faster.
    deep = np.where(_SPLIT > 1, np.maximum(np.ceil(k / _SPLIT), _LEAST_CUT), k)
    each = 2.0 * area * deep * sm_count / rates.flops_per_s + rates.tile_s * area / _LARGEST
    computing = (waves * each + np.where(_SPLIT > 1, again, 0.0)).min(axis=1)
    return rates.start_s + beside(computing, n_bytes / rates.bytes_per_s, rates.overlap)


def beside(one: np.ndarray, other: np.ndarray, overlap: float) -> np.ndarray:
    """Return the seconds of two things at once, (one^p + other^p)^(1/p); at least the longer."""
    longer, shorter = np.maximum(one, other), np.minimum(one, other)
    return longer * (1 + (shorter / np.maximum(longer, 1e-30)) ** overlap) ** (1 / overlap)
