"""A layer's two halves as kernels: attention over a prompt or a cache, and the MLP or experts."""

import math
from typing import Any

from parallax.communication import expected_routing
from parallax.estimate.fused import fused_cached, fused_step
from parallax.estimate.kernels import block_pair, gemm, passes
from parallax.estimate.packed_weights import device_matrices
from parallax.estimate.sends import one_send
from parallax.estimate.sketch import Sketch
from parallax.hlo.work import Kernel, Loop, Start, Step, Wait
from parallax.models.block import attention_shape
from parallax.parallel.experts import TILES_SCOPE
from parallax.parallel.experts.chunks import chunk_tokens

_WIDE = 4
# XLA merges products of one operand up to this size each (xla_gpu_dot_merger_threshold_mb).
_MERGED_BYTES = 64 << 20


def _products(sketch: Sketch, part: str, *, reading: bool) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) on one device of the part's matrices that multiply the residual stream, or
    of those behind them."""
    sizes = device_matrices(sketch.config, sketch.split, part)
    return {name: (n, k) for name, (k, n, _) in sizes.items()
            if sketch.weights.matrices[name].reads_stream == reading}  # fmt: skip


def products_behind(sketch: Sketch, part: str) -> list[Step]:
    """The products of a part that do not read the residual stream, such as attention's output."""
    found = _products(sketch, part, reading=False)
    return [step for name, size in found.items() for step in sketch.product(name, *size)]


def projections(sketch: Sketch) -> list[Step]:
    """Queries, keys and values; XLA makes one product of those that are small, and for that
    puts their weights side by side, every time."""
    d, item = sketch.config.d_model, sketch.item
    products = _products(sketch, "attention", reading=True)
    widths = {name: n for name, (n, _) in products.items()}
    merged = [n for n, w in widths.items()
              if item * (d * w + sketch.tokens * (d + w)) <= _MERGED_BYTES]  # fmt: skip
    unpacked = [sketch.weights.unpacked(n, w, d, item) for n, w in widths.items()]
    stays_packed = any(sketch.weights.form_of(n) for n in widths) and not any(unpacked)
    if len(merged) < 2 or stays_packed:
        return [step for n, w in widths.items() for step in sketch.product(n, w, d)]
    width = sum(widths[n] for n in merged)
    weights = float(d * width * item)
    steps: list[Step] = [s for n, found in zip(widths, unpacked, strict=True) if n in merged
                         for s in found]  # fmt: skip
    steps.append(passes("side by side", weights, weights))
    steps.append(gemm("qkv", sketch.tokens, width, d, sketch.dtype, item))
    alone = [n for n in widths if n not in merged]
    return [*steps, *(step for n in alone for step in sketch.product(n, widths[n], d))]


def prompt_attention(sketch: Sketch) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
    """All queries against all keys, in blocks; and the loop body of one pair of blocks."""
    config, part = sketch.config, sketch.split.attention
    shape = attention_shape(
        config, sketch.split, sketch.walk.b, sketch.workload.seq_len, packed=False
    )
    work = part.work(shape, sketch.split.mesh_axes)
    values = shape.values
    pairs = work.scores / max(1, work.rows * work.block**2)
    around = [(t, n) for t, n in sketch.of_layer("keys and values around")]
    exchanged = sketch.of_layer("queries ", "keys of", "keys between", "values ", "scores")
    home = sketch.of_layer("outputs ")
    width = work.width - values
    whole = float(work.rows * values) * sketch.workload.seq_len
    whole /= math.prod(sketch.split.mesh_axes[a] for a in getattr(part, "seq_axes", ()))
    steps: list[Step] = [*sketch.sends(exchanged), passes("zero o", 0.0, whole * _WIDE)]
    pair = block_pair(work.rows, work.block, width, values, sketch.item, sketch.dtype)
    hops = 1 + sum(n for _, n in around)
    tokens = whole / max(1, work.rows * values)
    fused = fused_step(sketch, work, values, tokens, hops)
    # XLA's scheduler starts a send where it thinks it will just be done: half-way through the
    # hop's work.
    half, loop = ([Loop("pairs", pairs / hops / n, "pair", "test")] for n in (2, 1))
    if fused:
        half, loop = fused[:1], fused
    chosen = float(work.rows * work.block) * sketch.item * (2 * width + values)
    for t, n in around:
        for i in range(int(n)):
            name = f"{t.what}.{i}"
            steps += [*half, Start(name, one_send(t, sketch.strategy.mesh, t.what)), *half,
                      passes("choose", 3 * chosen, 1.5 * chosen), Wait(name)]  # fmt: skip
    steps += [*loop, passes("finish", whole * _WIDE, whole * sketch.item), *sketch.sends(home)]
    return steps, {"pair": pair}


def cached_attention(sketch: Sketch) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
    """A new token's queries against the cache."""
    assert sketch.decoder is not None
    cache = sketch.decoder.kv_bytes() / sketch.walk.layers / sketch.decoder.step_microbatches
    # A product of several queries with the same keys needs them in one piece: those of a
    # microbatch are copied out. One query's keys are read where they lie.
    fused = fused_cached(sketch, cache)
    grouped = sketch.heads > sketch.kv_heads and sketch.decoder.step_microbatches > 1
    picked = [passes(f"picked {x}", cache / 2, cache / 2) for x in "kv"] if grouped else []
    shape = sketch.decoder.attention_shape
    scores = float(shape.batch * shape.heads * sum(sketch.decoder.slots) * _WIDE)
    asked = sketch.of_layer("queries", "keys", "values", "new")
    rest = [x for x in sketch.of_layer("") if x not in asked
            and not x[0].what.startswith(("sum", "gather", "rows", "tokens"))]  # fmt: skip
    tokens = float(sketch.tokens * sketch.heads * sketch.head_dim * _WIDE)
    attend = fused or [
        *picked, passes("scores", cache / 2, scores), passes("max", scores, 0.0, "scores"),
        passes("p", scores, scores / 2, "scores"), passes("values", cache / 2, tokens),
    ]  # fmt: skip
    steps: list[Step] = [
        *sketch.sends(asked), passes("new", tokens, tokens), *attend,
        passes("finish", tokens, tokens), *sketch.sends(rest), passes("put", tokens, tokens),
        passes("put", tokens, tokens),
    ]  # fmt: skip
    return steps, {}


def plain_mlp(sketch: Sketch) -> list[Step]:
    """One MLP for all tokens."""
    first = _products(sketch, "mlp", reading=True)
    steps: list[Step] = []
    name, (n, k) = next(iter(first.items()))
    dense = sketch.weights.form_of(name) is None
    if dense and sketch.decoder and len(first) == 1 and sketch.walk.layers > 1 and sketch.asks():
        # XLA copies the first matrix out of its stack, beside the layer; after an exchange of
        # queries it starts too late to be hidden.
        matrix = float(n * k * sketch.item)
        steps.append(passes(f"{name}.w", matrix, matrix))
    steps += [step for name, size in first.items() for step in sketch.product(name, *size)]
    return [*steps, _activated(first, sketch.tokens * sketch.item), *products_behind(sketch, "mlp")]


def _activated(first: dict[str, tuple[int, int]], row_bytes: int) -> Kernel:
    """What the first matrices put out becomes what the last one takes in."""
    read = tuple((name, float(row_bytes * n)) for name, (n, _) in first.items())
    return Kernel("act", read, read[0][1])


def expert_mlp(sketch: Sketch) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
    """Router, dispatch, tiles of rows in chunks beside their exchange, combine."""
    routing = expected_routing(sketch.config, sketch.strategy, sketch.workload, sketch.decoder)
    assert routing is not None
    part: Any = sketch.split.experts
    shape = sketch.walk.expert_shape
    r, item, d = sketch.residual, sketch.item, sketch.config.d_model
    chunks, _ = chunk_tokens(shape.tokens, getattr(part, "chunks", 1))
    rows = r * shape.top_k
    tile = part.tile
    weights, dtype = sketch.weights, sketch.dtype
    first, last = (_products(sketch, "mlp", reading=reading) for reading in (True, False))

    def multiplied(products):
        return (step for name, (n, k) in products.items()
                for step in weights.multiplied(name, tile, n, k, dtype, item))  # fmt: skip

    tiles = (
        *multiplied(first),
        _activated(first, tile * item),
        *multiplied(last),
        passes("put", tile * d * item, tile * d * item),
        passes("cut", tile * d * item, tile * d * item),
    )
    known = ("sum", "gather", "queries", "keys", "values", "outputs", "scores", "widen")
    moved = [x for x in sketch.of_layer("") if not x[0].what.startswith(known)]
    sends = sketch.sends(moved)
    here = sketch.config.num_experts // sketch.split.count("expert")
    sizes = (first | last).items()
    unpacked = [step for name, (n, k) in sizes
                for step in weights.unpacked(name, n, k, item, here)]  # fmt: skip
    stored = {name: None if unpacked else weights.form_of(name) for name, _ in sizes}
    matrices = sum(float(form.n_bytes(k, n)) if (form := stored[name]) else float(n * k * item)
                   for name, (n, k) in sizes)  # fmt: skip
    loop = Loop("experts", here, "expert", "test")
    expert: list[Step] = [
        Loop(
            "tiles",
            _skew_of(sketch, here) * routing.trips[TILES_SCOPE],
            "tile",
            "test",
            known=False,
        )
    ]
    if here > 1:  # one expert's matrices are copied out of its layer's
        expert = [Start("cut", passes("cut", matrices, matrices)), Wait("cut"), *expert]
    stacked = passes("layer", here * matrices, here * matrices)
    copied = sketch.walk.layers > 1 and not unpacked  # what is made dense is in one piece
    steps: list[Step] = [Start("layer", stacked)] if copied else unpacked
    steps += [
        *sketch.product("router", sketch.config.num_experts, d),
        *(passes(f"route {i}", r / 64, r / 64) for i in range(8)),
    ]
    steps += [Wait("layer")] if copied else []
    each = math.ceil(len(sends) / chunks) if sends else 0
    steps += sends[:each]
    for i in range(chunks):
        starts = [Start(f"chunk {i}.{j}", s)
                  for j, s in enumerate(sends[(i + 1) * each : (i + 2) * each])]  # fmt: skip
        steps += [*starts, passes("pack", 2 * rows / chunks, 2 * rows / chunks), loop,
                  *(Wait(s.name) for s in starts)]  # fmt: skip
    steps += [passes("combine", 2 * rows, 2 * r)]
    return steps, {"tile": tiles, "expert": tuple(expert)}


def _skew_of(sketch: Sketch, experts_here: int) -> float:
    """Rows of the busiest device over the mean: one busy expert among those it has."""
    return 1 + (sketch.skew - 1) / experts_here
