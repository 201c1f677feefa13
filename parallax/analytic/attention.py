"""The attention of a layer as kernels of a trace: over a prompt, or against a KV cache."""

import math

from parallax.analytic.fused import fused_cached, fused_step
from parallax.analytic.kernels import block_pair, cache_read, gemm, passes
from parallax.analytic.trace import Trace
from parallax.hlo.execution_trace import Loop, Start, Step, Wait
from parallax.models.block import attention_shape

_WIDE = 4
# XLA merges products of one operand up to this size each (xla_gpu_dot_merger_threshold_mb).
_MERGED_BYTES = 64 << 20


def projections(trace: Trace) -> list[Step]:
    """Trace the query, key and value projections.

    XLA merges the small ones into one product, and concatenates their weights for it every time;
    in a decoding step it is told not to (`programs.decoding.STEP_OPTIONS`).
    """
    d, item = trace.config.d_model, trace.item
    sizes = trace.matrices("attention", reads_stream=True)
    # Matrices that follow a latent have fewer inputs than those of the residual stream.
    merged = [n for n, (w, k) in sizes.items()
              if k == d and item * (d * w + trace.tokens * (d + w)) <= _MERGED_BYTES]  # fmt: skip
    unpacked = [trace.weights.unpacked(n, w, k, item) for n, (w, k) in sizes.items()]
    stays_packed = any(trace.weights.form_of(n) for n in sizes) and not any(unpacked)
    if trace.decoder or len(merged) < 2 or stays_packed:
        return [step for n, size in sizes.items() for step in trace.product(n, *size)]
    width = sum(sizes[n][0] for n in merged)
    weights = float(d * width * item)
    steps: list[Step] = [s for n, found in zip(sizes, unpacked, strict=True) if n in merged
                         for s in found]  # fmt: skip
    steps.append(passes("side by side", weights, weights))
    steps.append(gemm("qkv", trace.tokens, width, d, trace.dtype, item))
    alone = [n for n in sizes if n not in merged]
    return [*steps, *(step for n in alone for step in trace.product(n, *sizes[n]))]


def prompt_attention(trace: Trace) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
    """Trace all queries against all keys, in blocks; and the loop body of one pair of blocks."""
    config, part = trace.config, trace.split.attention
    shape = attention_shape(
        config, trace.split, trace.walk.b, trace.workload.seq_len, packed=False,
        kind=config.kinds[0],
    )  # fmt: skip
    work = part.work(shape, trace.split.mesh_axes)
    values = shape.values
    pairs = work.scores / max(1, work.rows * work.block**2)
    width = work.width - values
    whole = float(work.rows * values) * trace.workload.seq_len
    whole /= math.prod(trace.split.mesh_axes[a] for a in getattr(part, "seq_axes", ()))
    inputs = trace.sends("attention_inputs", "scores")
    steps: list[Step] = [*inputs]
    # One latent is the key and the value of all heads.
    keys = shape.kv_heads / shape.heads if shape.shared_values else 1.0
    pair = block_pair(work.rows, work.block, width, values, trace.item, trace.dtype, keys=keys)
    hops = 1 + sum(n for _, n in trace.rings())
    tokens = whole / max(1, work.rows * values)
    fused = fused_step(trace, work, values, tokens, hops)
    # XLA's scheduler starts a send as late as it estimates that it will still be done in time:
    # half-way through the hop's work.
    half, loop = ([Loop("pairs", pairs / hops / n, "pair", "test")] for n in (2, 1))
    finish = [passes("finish", whole * _WIDE, whole * trace.item)]
    if fused:
        half, loop, finish = fused[:1], fused, []
    else:
        steps.append(passes("zero o", 0.0, whole * _WIDE))
    chosen = float(work.rows * work.block) * trace.item * (width + keys * (width + values))
    for sends, n in trace.rings():
        for i in range(n):
            hop = [Start(f"{send.name}.{i}", send) for send in sends]
            steps += [*half, *hop, *half, passes("choose", 3 * chosen, 1.5 * chosen)]
            steps += [Wait(start.name) for start in hop]
    steps += [*loop, *finish]
    steps += trace.sends("attention_outputs")
    return steps, {"pair": pair}


def cached_attention(trace: Trace) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
    """Trace a new token's queries against the KV cache."""
    assert trace.decoder is not None
    cache = trace.decoder.kv_bytes() / trace.walk.layers / trace.decoder.step_microbatches
    # A product of several queries with the same keys needs them contiguous: a microbatch's keys are
    # copied out of the cache. A single query's keys are read in place.
    fused = fused_cached(trace, cache)
    grouped = trace.heads > trace.kv_heads and trace.decoder.step_microbatches > 1
    picked = [passes(f"picked {x}", cache / 2, cache / 2) for x in "kv"] if grouped else []
    shape = trace.decoder.attention_shape
    # Latents are keys and values: both products read all of them.
    read = cache if shape.shared_values else cache / 2
    scores = float(shape.batch * shape.heads * sum(trace.decoder.slots) * _WIDE)
    tokens = float(trace.tokens * trace.heads * trace.head_dim * _WIDE)
    attend = fused or [
        *picked, cache_read("scores", read, scores), passes("max", scores, 0.0, "scores"),
        passes("p", scores, scores / 2, "scores"), cache_read("values", read, tokens),
    ]  # fmt: skip
    steps: list[Step] = [
        *trace.sends("attention_inputs"), passes("new", tokens, tokens), *attend,
        passes("finish", tokens, tokens), *trace.sends("scores", "attention_outputs"),
        passes("put", tokens, tokens), passes("put", tokens, tokens),
    ]  # fmt: skip
    return steps, {}
