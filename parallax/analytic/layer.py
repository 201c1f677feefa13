"""The forward pass of a layer as kernels of a trace, part by part."""

from parallax.analytic.attention import cached_attention, projections, prompt_attention
from parallax.analytic.kernels import passes
from parallax.analytic.mlp import expert_mlp, plain_mlp
from parallax.analytic.trace import Trace
from parallax.hlo.execution_trace import Step

Bodies = dict[str, tuple[Step, ...]]  # name of a loop's body -> its steps


def layer_steps(trace: Trace) -> tuple[list[Step], Bodies]:
    """Trace a layer, and the bodies of the loops in it."""
    attend = cached_attention if trace.decoder else prompt_attention
    attention, inner = attend(trace)
    mlp, more = mlp_steps(trace)
    r = trace.residual
    turn = [passes("turn", r, r)] if is_turned(trace) else []
    last = passes("residual", r, 0.0) if not trace.sums() else passes("residual", 2 * r, r)
    steps = [*query_steps(trace), *attention, *output_steps(trace), *mlp, *turn,
             *trace.sends("after_mlp"), last, passes("count", 0.0, 0.0)]  # fmt: skip
    return steps, inner | more


def is_turned(trace: Trace) -> bool:
    """Whether results of several sequences are transposed before they are summed over devices."""
    return trace.walk.b > 1 and not trace.decoder and trace.sums()


def _rows(trace: Trace) -> list[Step]:
    # Where nothing is summed over devices, a norm is one kernel, and the residual is added in the
    # product before it.
    r = trace.residual
    return [passes("square", r, r / 512), passes("rows", r / 512, r / 8192)] if trace.sums() else []


def query_steps(trace: Trace) -> list[Step]:
    """Trace what is before attention: the norm, projections and rotations."""
    t, item, r = trace.tokens, trace.item, trace.residual
    q = float(t * trace.heads * trace.head_dim * item)
    kv = float(t * trace.kv_heads * trace.head_dim * item)
    return [*trace.sends("before_attention"), *_rows(trace), passes("normed", r, r),
            *projections(trace), passes("even", q / 2, q), passes("odd", q / 2, q),
            passes("turned q", 2 * q, q), passes("k", kv, kv, "k"),
            passes("v", kv, kv, "v")]  # fmt: skip


def output_steps(trace: Trace) -> list[Step]:
    """Trace what is between attention and the MLP: the output matrix, the sum and the norm."""
    r = trace.residual
    added = [passes("add", 2 * r, r), *_rows(trace)[1:]]
    return [*trace.products_behind("attention"),
            *([passes("turn", r, r)] if is_turned(trace) else []),
            *trace.sends("after_attention"),
            *(added if trace.sums() else [passes("residual", r, 0.0)]),
            passes("normed", r, r), *trace.sends("before_mlp")]  # fmt: skip


def mlp_steps(trace: Trace) -> tuple[list[Step], Bodies]:
    """Trace the MLP or the experts."""
    return expert_mlp(trace) if trace.config.num_experts else (plain_mlp(trace), {})
