"""The trace of fused attention in place of XLA's blocks, where it is enabled and applies."""

from parallax.analytic.kernels import passes
from parallax.analytic.trace import Trace
from parallax.hlo.cudnn import FusedAttention
from parallax.hlo.execution_trace import Kernel
from parallax.kernels.decode_attention.tiles import HEAD_DIMS, splits, tile_of
from parallax.kernels.ring_attention.tiles import CANDIDATES
from parallax.parallel.attention_part import AttentionWork
from parallax.parallel.layer_parts import CacheTiled
from parallax.parallel.library_attention import WIDEST_COMPILED

_WIDE = 4  # bytes of an accumulator's element
WIDEST_ROWS = 256  # of the kernels whose warpgroups have all of a head's width each
_HALF = ("f16", "bf16")


def fused_step(
    trace: Trace, work: AttentionWork, values: int, tokens: float, hops: float
) -> list[Kernel]:
    """Trace one hop of attention as kernels that add up to it; [] where XLA computes it.

    Args:
      trace: the step, as one device sees it.
      work: attention work per device, of all hops.
      values: width of a head's values.
      tokens: queries per row on a device.
      hops: devices of the ring; 1 for a whole sequence.
    """
    asked, width = trace.kernels, work.width - values
    partial = trace.has("scores")
    if asked is None or partial or trace.dtype not in _HALF or width != values:
        return []
    if asked == "cudnn":
        visible = 0.5 if trace.config.causal else 1.0
        # Sharded queries with all their keys have fewer scores, and take the stepwise kernel.
        in_shards = work.scores < visible * work.rows * tokens**2
        if hops > 1 or in_shards or width > WIDEST_COMPILED or width % 8:
            return []
        return [_library(trace, work, width, tokens)]
    if width not in CANDIDATES:
        return []
    # A carry between two hops is written and read; the last hop writes the output.
    moved = _moved(trace, work, width, tokens, (2 * _WIDE * (hops - 1) + trace.item) / hops)
    part = Kernel("step", (("step.in", moved / 2),), 0.0, flops=work.flops / hops / 2)
    return [part, part]


def fused_backward(
    trace: Trace, work: AttentionWork, values: int, tokens: float, hops: float, *, again: bool
) -> list[Kernel]:
    """Trace the backward pass of one hop of `fused_step`; [] where XLA computes it.

    Our kernels compute scores again in two passes, for the queries and for keys and values: 3.5
    times the forward FLOPs, and 4.5 times for the widest heads. cuDNN's takes 2.5 times, and the
    forward pass runs again in a layer that is recomputed (`again`), because nothing of it is kept.
    """
    forward = fused_step(trace, work, values, tokens, hops)
    if not forward:
        return []
    if (call := forward[0].attention) is not None:
        ((name, size),) = forward[0].reads
        reads = ((name, 2 * size),)
        back = Kernel("attention back", reads, size, attention=call._replace(products=5))
        return [*(forward if again else []), back]
    times = 4.5 if values > WIDEST_ROWS else 3.5
    whole = _moved(trace, work, values, tokens, 2 * _WIDE)
    flops = times * 2 * forward[0].flops
    return [Kernel(f"step back {i}", ((f"step back {i}.in", whole),), 0.0, flops=share * flops)
            for i, share in enumerate((3 / 7, 4 / 7))]  # fmt: skip


def _moved(trace: Trace, work: AttentionWork, width: int, tokens: float, results: float) -> float:
    """Return the bytes of queries, keys and values, and `results` bytes per element of q."""
    keys = trace.kv_heads / trace.heads
    return work.rows * tokens * width * (trace.item * (1 + 2 * keys) + results)


def fused_cached(trace: Trace, cache_bytes: float) -> list[Kernel]:
    """Trace new tokens' queries against `cache_bytes` of KV cache; [] where XLA computes it."""
    assert trace.decoder is not None
    layout, shape = trace.decoder.layout, trace.decoder.attention_shape
    if trace.kernels != "mosaic" or trace.dtype not in _HALF or layout.slice_axes:
        return []
    if (
        shape.shared_values
        or shape.head_dim not in HEAD_DIMS
        or isinstance(trace.strategy.layers, CacheTiled)
    ):
        return []
    tile, slots = tile_of(shape.head_dim, shape.heads // shape.kv_heads), sum(trace.decoder.slots)
    problems = round(cache_bytes / (2 * slots * shape.head_dim * trace.item)) * tile.groups
    rows = problems * tile.queries
    parts = float(rows * splits(problems, slots, tile) * (shape.head_dim + 2) * _WIDE)
    flops = 4.0 * rows * slots * shape.head_dim
    read = (("cache", tile.groups * cache_bytes),)
    whole = float(rows * shape.head_dim * _WIDE)
    return [
        Kernel("splits", read, parts, flops=flops),
        passes("sum of splits", parts, whole),
    ]


def _library(trace: Trace, work: AttentionWork, width: int, tokens: float) -> Kernel:
    visible = 0.5 if trace.config.causal else 1.0
    keys = trace.kv_heads / trace.heads
    bytes_each = float(work.rows * tokens * width * trace.item)
    call = FusedAttention(
        1, work.rows, int(tokens), int(tokens), width, visible, trace.dtype, products=2
    )
    return Kernel("attention", (("qkv", (1 + 2 * keys) * bytes_each),), bytes_each, attention=call)
