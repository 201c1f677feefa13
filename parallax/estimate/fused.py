"""Attention by one kernel in place of XLA's blocks, where the strategy asks for it and it can."""

from parallax.estimate.sketch import Sketch
from parallax.hlo.cudnn import FusedAttention
from parallax.hlo.work import Kernel
from parallax.kernels.ring_attention.tiles import TILES
from parallax.parallel.attention_part import Work
from parallax.parallel.library_attention import WIDEST_COMPILED

_WIDE = 4  # bytes of an accumulator's element
_HALF = ("f16", "bf16")


def fused_step(sketch: Sketch, work: Work, values: int, tokens: float, hops: float) -> list[Kernel]:
    """A hop of a device's attention: parts that add up to it; [] where XLA computes it.

    Args:
      work: of all hops.
      values: width of the values of a head.
      tokens: queries of a device's row.
      hops: devices of the ring; 1 for a whole sequence.
    """
    asked, width = sketch.strategy.kernels, work.width - values
    partial = bool(sketch.of_layer("scores"))
    if asked is None or partial or sketch.dtype not in _HALF or width != values:
        return []
    if asked == "cudnn":
        if hops > 1 or width > WIDEST_COMPILED or width % 8:
            return []
        return [_library(sketch, work, width, tokens)]
    if width not in TILES:
        return []
    keys = sketch.kv_heads / sketch.heads
    moved = work.rows * tokens * width * (sketch.item * (1 + 2 * keys) + 2 * _WIDE)
    part = Kernel("step", (("step.in", moved / 2),), 0.0, flops=work.flops / hops / 2)
    return [part, part]


def _library(sketch: Sketch, work: Work, width: int, tokens: float) -> Kernel:
    visible = 0.5 if sketch.config.causal else 1.0
    bytes_each = float(work.rows * tokens * width * sketch.item)
    call = FusedAttention(
        1, work.rows, int(tokens), int(tokens), width, visible, sketch.dtype, products=2
    )
    return Kernel("attention", (("qkv", 3 * bytes_each),), bytes_each, attention=call)
