"""The backward pass of a layer as kernels of a trace, with what it computes again."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from parallax.analytic.fused import fused_backward
from parallax.analytic.kernels import block_pair_backward, gemm, passes
from parallax.analytic.layer import Bodies, mlp_steps, output_steps, query_steps
from parallax.analytic.mlp import expert_mlp_backward
from parallax.analytic.trace import Trace
from parallax.hlo.execution_trace import Loop, Send, Start, Step, Wait
from parallax.models.block import attention_shape
from parallax.parallel.remat import Remat

_WIDE = 4


class SentBack(NamedTuple):
    """What a layer's backward pass sends beside its products.

    Attributes:
      ring: keys and values around a ring with their gradients, hop by hop.
      attention, mlp: sums of the gradients of the residual stream.
    """

    ring: Sequence[Sequence[Send]]
    attention: Sequence[Send]
    mlp: Sequence[Send]


def backward_steps(trace: Trace, remat: Remat, sent: SentBack) -> tuple[list[Step], Bodies]:
    """Trace the backward pass of a layer, and the bodies of the loops in it.

    Args:
      trace: the step, as one device sees it.
      remat: what is computed again first.
      sent: what it sends.
    """
    again, inner = _again(trace, remat)
    mlp, of_mlp = _mlp(trace, sent.mlp)
    attention, of_attention = _attention(trace, sent.ring, again=remat != "none")
    r = trace.residual
    steps = [
        *again,
        *mlp,
        passes("mlp_norm back", 5 * r, 3 * r),
        *_products(trace, "attention"),
        *attention,
        passes("rotated back", 2 * r, 2 * r),
        *_products(trace, "attention", sent.attention),
        passes("attention_norm back", 5 * r, 3 * r),
    ]
    return steps, inner | of_mlp | of_attention


def _again(trace: Trace, remat: Remat) -> tuple[list[Step], Bodies]:
    """Trace what is computed again, sends left out: elementwise operations, or all but attention.

    Of an MLP the last product is not needed; experts run again to the end.
    """
    if remat == "none":
        return [], {}
    mlp, inner = mlp_steps(trace)
    before = [*query_steps(trace), *output_steps(trace)]
    if not trace.config.num_experts:
        before += mlp[: -len(trace.products_behind("mlp"))]
        mlp = []
    if remat == "attention":
        before = [s for s in before if not getattr(s, "gemms", ())]
    return [s for s in [*before, *mlp] if not _is_sent(s)], inner


def _is_sent(step: Step) -> bool:
    return isinstance(step, Send) or (isinstance(step, Start) and isinstance(step.what, Send))


def _products(trace: Trace, part: str, sums: Sequence[Send] | None = None) -> list[Step]:
    """Trace the gradients of a part's products, of the rows and of the weights.

    With `sums` they are the products that read the residual stream, and the sums of its gradient
    travel beside the gradients of the weights; otherwise those that follow.
    """
    matrices = trace.matrices(part, reads_stream=sums is not None).items()
    args = trace.dtype, trace.item
    starts = [Start(f"{send.name} {n}", send) for n, send in enumerate(sums or ())]
    return [
        *(
            gemm(f"{name} dx", trace.tokens, k, n, *args, b=f"{name}.w")
            for name, (n, k) in matrices
        ),
        *starts,
        *(
            gemm(f"{name} dw", k, n, trace.tokens, *args, b=f"{name}.x")
            for name, (n, k) in matrices
        ),
        *(Wait(start.name) for start in starts),
    ]


def _mlp(trace: Trace, sums: Sequence[Send]) -> tuple[list[Step], Bodies]:
    if trace.config.num_experts:
        steps, inner = expert_mlp_backward(trace)
        return [*steps, *sums], inner
    first = trace.matrices("mlp", reads_stream=True)
    wide = len(first) * float(trace.tokens * next(iter(first.values()))[0] * trace.item)
    steps = [
        *_products(trace, "mlp"),
        passes("act back", 1.5 * wide, 1.5 * wide),
        *_products(trace, "mlp", sums),
    ]
    return steps, {}


def _attention(
    trace: Trace, ring: Sequence[Sequence[Send]], *, again: bool
) -> tuple[list[Step], Bodies]:
    config, part, item = trace.config, trace.split.attention, trace.item
    shape = attention_shape(
        config, trace.split, trace.walk.b, trace.workload.seq_len, packed=False,
        kind=config.kinds[0],
    )  # fmt: skip
    work = part.work(shape, trace.split.mesh_axes)
    width = work.width - shape.values
    pairs = work.scores / max(1, work.rows * work.block**2)
    whole = float(work.rows * shape.values) * trace.workload.seq_len
    whole /= math.prod(trace.split.mesh_axes[a] for a in getattr(part, "seq_axes", ()))
    steps: list[Step] = [passes("delta", 2 * whole * item, 0.0)]
    tokens = whole / max(1, work.rows * shape.values)
    hops = 1 + len(ring)
    each = fused_backward(trace, work, shape.values, tokens, hops, again=again)
    each = each or [Loop("pairs back", pairs / hops, "pair back", "test")]
    for number, hop in enumerate(ring):
        starts = [Start(f"{send.name} back.{number}", send) for send in hop]
        steps += [*starts, *each, *(Wait(start.name) for start in starts)]
    steps += [*each, passes("dqkv", 3 * whole * _WIDE, 3 * whole * item)]
    pair = block_pair_backward(work.rows, work.block, width, shape.values, item, trace.dtype)
    return steps, {"pair back": pair}
