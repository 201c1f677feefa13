"""Kernels of a synthetic trace: what one launch multiplies, reads and writes.

Names stand for arrays, so that the cache model sees what was just written.
Shapes: T tokens of a microbatch on one device, D model width, H heads, K head_dim, c block.
"""

from parallax.hlo.execution_trace import Gemm, Kernel

_WIDE = 4  # bytes of a float32 accumulator


def gemm(
    name: str, m: float, n: float, k: float, dtype: str, item: int, *, a: str = "", b: str = "",
    batch: int = 1, out_item: int | None = None, b_bytes: float | None = None,
) -> Kernel:  # fmt: skip
    """batch x [m, k] x [k, n]; `b_bytes` where the second operand is stored otherwise.

    The second operand is a weight of that name, or the array `b`.
    """
    m, n, k = int(m), int(n), int(k)
    second = batch * k * n * item if b_bytes is None else b_bytes
    weights = () if b else (f"{name}.w",)
    reads = ((a or f"{name}.x", batch * m * k * item), (b or f"{name}.w", second))
    written = batch * m * n * (item if out_item is None else out_item)
    return Kernel(name, reads, float(written), (Gemm(batch, m, n, k, dtype),), weights=weights)


def passes(name: str, read: float, written: float, of: str = "") -> Kernel:
    """A kernel that only moves bytes."""
    return Kernel(name, ((of or f"{name}.in", read),), written)


def cache_read(name: str, read: float, written: float) -> Kernel:
    """A kernel that moves bytes of the KV cache."""
    return Kernel(name, ((f"{name}.in", read),), written, kv_cache=(f"{name}.in",))


def block_pair(rows: int, block: int, width: int, values: int, item: int, dtype: str):
    """One block of queries against one of keys, all heads and sequences at once."""
    score, query, out = rows * block * block, rows * block * width, rows * block * values
    small = float(rows * block * _WIDE)
    return (
        passes("q_i", query * item, query * item, "q"),
        passes("k_j", query * item, query * item, "k"),
        gemm("s", block, block, width, dtype, item, a="q_i", b="k_j", batch=rows, out_item=_WIDE),
        passes("mask", small, small),
        passes("max", score * _WIDE, small, "s"),
        passes("shrink", 2 * small, 2 * small),
        passes("p", score * _WIDE, score * item, "s"),
        passes("v_j", out * item, out * item, "v"),
        gemm("pv", block, values, block, dtype, item, a="p", b="v_j", batch=rows, out_item=_WIDE),
        passes("o_i", out * _WIDE, out * _WIDE, "o"),
        Kernel("o_new", (("o_i", float(out * _WIDE)), ("pv", float(out * _WIDE))),
               float(out * _WIDE)),
        passes("l", 3 * small, small),
        passes("m", 2 * small, small),
        passes("index", 0.0, 0.0),
    )  # fmt: skip
