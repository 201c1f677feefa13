"""What a Hopper GPU has. Nothing heavy is imported here: how work is cut must be known without."""

# Dtypes of the kernels' products.
DTYPES = ("float16", "bfloat16")
# Of an H100 or H200 in its SXM form (assumed where only the name Hopper is known).
MULTIPROCESSORS = 132
# Rows of one wgmma instruction: a warpgroup's.
ROWS = 64
# Shared memory of a multiprocessor; what the system keeps of it for each block of threads; and what
# one block may use.
SHARED_BYTES, RESERVED_BYTES = 228 * 1024, 1024
SHARED_BYTES_LIMIT = SHARED_BYTES - RESERVED_BYTES
