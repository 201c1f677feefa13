"""Hardware constants of a Hopper GPU.

Nothing heavy is imported here: code that only partitions work needs no kernel language.
"""

# Dtypes that the kernels multiply.
DTYPES = ("float16", "bfloat16")
# Multiprocessors of an H100 or H200 SXM (assumed for every Hopper GPU).
MULTIPROCESSORS = 132
# Rows of one wgmma instruction, which one warpgroup issues.
ROWS = 64
# Shared memory per multiprocessor, the part that the system reserves per thread block, and the most
# that one block may use.
SHARED_BYTES, RESERVED_BYTES = 228 * 1024, 1024
SHARED_BYTES_LIMIT = SHARED_BYTES - RESERVED_BYTES
