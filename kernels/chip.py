"""Hardware constants of a Hopper GPU.

Nothing heavy is imported here: code that only partitions work needs no kernel language.
"""

# Dtypes that the kernels multiply.
DTYPES = ("float16", "bfloat16")
# Multiprocessors of an H100 or H200 SXM (assumed for every Hopper GPU).
MULTIPROCESSORS = 132
# L2 cache.
L2_BYTES = 50 << 20
# Rows of one wgmma instruction, which one warpgroup issues.
ROWS = 64
# Shared memory per multiprocessor, the part that the system reserves per thread block, and the most
# that one block may use.
SHARED_BYTES, RESERVED_BYTES = 228 * 1024, 1024
SHARED_BYTES_LIMIT = SHARED_BYTES - RESERVED_BYTES
_MOST_SPLITS = 16


def splits_of(
    parts: int, blocks: int, part_bytes: float, sums_bytes: int, *, is_direct: bool
) -> int:
    """Return into how many splits a product's inputs are divided, for the least bytes.

    More splits keep more multiprocessors busy, but each writes partial sums that are read again to
    be added up: both are counted as bytes through device memory.

    Args:
      parts: parts of the inputs, none of which is divided.
      blocks: thread blocks of one split. part_bytes: what each of them streams of a part.
      sums_bytes: bytes of one split's sums.
      is_direct: whether a single split writes results instead of sums.
    """

    def n_bytes(splits: int) -> float:
        waves = -(-blocks * splits // MULTIPROCESSORS)
        sums = 0 if is_direct and splits == 1 else 2 * splits * sums_bytes
        return waves * -(-parts // splits) * part_bytes * MULTIPROCESSORS + sums

    return min(range(1, min(_MOST_SPLITS, parts) + 1), key=n_bytes)
