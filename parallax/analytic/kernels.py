"""The kernels of a synthetic trace: what each launch multiplies, reads and writes.

Arrays have names, so that the cache model sees what was just written.
Shapes: T tokens of a microbatch on one device, D model width, H heads, K head_dim, c block.
"""

from parallax.hlo.execution_trace import Gemm, Kernel

_WIDE = 4  # bytes of a float32 accumulator


def gemm(
    name: str, m: float, n: float, k: float, dtype: str, item: int, *, a: str = "", b: str = "",
    batch: int = 1, out_item: int | None = None, b_bytes: float | None = None,
) -> Kernel:  # fmt: skip
    """Make the kernel of a matrix product batch x [m, k] x [k, n].

    Args:
      name: name of the result; the operands are `<name>.x` and the weight `<name>.w` by default.
      m, n, k, batch: sizes.
      dtype, item: HLO name of the operands' dtype, and bytes per element.
      a, b: names of other operands; with `b` the second one is not a weight.
      out_item: bytes per element of the result; None is `item`.
      b_bytes: bytes of the second operand, where it is stored in another form.
    """
    m, n, k = int(m), int(n), int(k)
    second = batch * k * n * item if b_bytes is None else b_bytes
    weights = () if b else (f"{name}.w",)
    reads = ((a or f"{name}.x", batch * m * k * item), (b or f"{name}.w", second))
    written = batch * m * n * (item if out_item is None else out_item)
    return Kernel(name, reads, float(written), (Gemm(batch, m, n, k, dtype),), weights=weights)


def passes(name: str, read: float, written: float, of: str = "") -> Kernel:
    """Make a kernel that only moves bytes, reading the array `of`."""
    return Kernel(name, ((of or f"{name}.in", read),), written)


def cache_read(name: str, read: float, written: float) -> Kernel:
    """Make a kernel that reads bytes of the KV cache."""
    return Kernel(name, ((f"{name}.in", read),), written, kv_cache=(f"{name}.in",))


def block_pair(
    rows: int, block: int, width: int, values: int, item: int, dtype: str, *, keys: float = 1.0
) -> tuple[Kernel, ...]:
    """Make the kernels of one block of queries against one of keys, for all heads and sequences.

    `keys` is the keys (and values) that are copied, per head.
    """
    score, query, out = rows * block * block, rows * block * width, rows * block * values
    small = float(rows * block * _WIDE)
    return (
        passes("q_i", query * item, query * item, "q"),
        passes("k_j", keys * query * item, keys * query * item, "k"),
        gemm("s", block, block, width, dtype, item, a="q_i", b="k_j", batch=rows, out_item=_WIDE),
        passes("mask", small, small),
        passes("max", score * _WIDE, small, "s"),
        passes("shrink", 2 * small, 2 * small),
        passes("p", score * _WIDE, score * item, "s"),
        passes("v_j", keys * out * item, keys * out * item, "v"),
        gemm("pv", block, values, block, dtype, item, a="p", b="v_j", batch=rows, out_item=_WIDE),
        passes("o_i", out * _WIDE, out * _WIDE, "o"),
        Kernel("o_new", (("o_i", float(out * _WIDE)), ("pv", float(out * _WIDE))),
               float(out * _WIDE)),
        passes("l", 3 * small, small),
        passes("m", 2 * small, small),
        passes("index", 0.0, 0.0),
    )  # fmt: skip


def block_pair_backward(
    rows: int, block: int, width: int, values: int, item: int, dtype: str
) -> tuple[Kernel, ...]:
    """Make the kernels of the backward pass of `block_pair`: scores again, and four gradients."""
    score, query, out = rows * block * block, rows * block * width, rows * block * values

    def product(name: str, n: int, k: int, a: str, b: str) -> Kernel:
        return gemm(name, block, n, k, dtype, item, a=a, b=b, batch=rows, out_item=_WIDE)

    def added(name: str, size: int) -> Kernel:
        return passes(name, 2.0 * size * _WIDE, float(size * _WIDE), name)

    return (
        passes("qkv_ij", (2 * query + 2 * out) * item, (2 * query + 2 * out) * item, "q"),
        product("s", block, width, "q_i", "k_j"),
        passes("p", score * _WIDE, score * (_WIDE + item), "s"),
        product("dv", values, block, "p", "do_i"),
        product("dp", block, values, "do_i", "v_j"),
        passes("ds", 2.0 * score * _WIDE, score * item, "dp"),
        product("dq", width, block, "ds", "k_j"),
        product("dk", width, block, "ds", "q_i"),
        added("dv", out), added("dq", query), added("dk", query),
    )  # fmt: skip
