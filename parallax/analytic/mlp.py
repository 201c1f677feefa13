"""The MLP of a layer as kernels of a trace: one MLP for all tokens, or experts with exchanges."""

import math
from dataclasses import replace
from typing import Any

from parallax.analytic.kernels import gemm, passes
from parallax.analytic.trace import Trace
from parallax.hlo.execution_trace import Kernel, Loop, Send, Start, Step, Wait
from parallax.parallel.experts import TILES_SCOPE
from parallax.parallel.experts.few_rows import Form
from parallax.programs.communication import expected_routing

_WIDE = 4


def plain_mlp(trace: Trace) -> list[Step]:
    """Trace one MLP for all tokens."""
    first = trace.matrices("mlp", reads_stream=True)
    steps = [step for name, size in first.items() for step in trace.product(name, *size)]
    return [*steps, _activated(trace, trace.tokens), *trace.products_behind("mlp")]


def expert_mlp(trace: Trace) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
    """Trace the router, the dispatch, the experts in chunks beside their exchange, the combine."""
    r, item = trace.residual, trace.item
    here = trace.config.num_experts // trace.split.count("expert")
    form = trace.split.experts.form(trace.walk.expert_shape, trace.split.mesh_axes, here)
    if form != "tiles":
        return [*_few(trace, form, here), *_shared_mlp(trace)], {}
    unpacked = [step for name, (n, k) in _matrices(trace).items()
                for step in trace.weights.unpacked(name, n, k, item, here)]  # fmt: skip
    matrices = _matrix_bytes(trace, dense=bool(unpacked))
    copied = trace.walk.layers > 1 and not unpacked  # unpacked matrices are contiguous already
    stacked = passes("layer", here * matrices, here * matrices)
    rows = r * trace.config.experts_per_token
    steps: list[Step] = [
        *([Start("layer", stacked)] if copied else unpacked),
        *trace.product("router", trace.config.num_experts, trace.config.d_model),
        *(passes(f"route {i}", r / 64, r / 64) for i in range(8)),
        *([Wait("layer")] if copied else []),
        *_in_chunks(trace, Loop("experts", here, "expert", "test"), rows),
        passes("combine", 2 * rows, 2 * r),
        *_shared_mlp(trace),
    ]
    return steps, {"tile": _tile(trace), "expert": _expert(trace, here, matrices)}


def _few(trace: Trace, form: Form, here: int) -> list[Step]:
    """Trace the experts of a decoding step's few rows, in one product per matrix."""
    part: Any = trace.split.experts
    sends: list[Send] = trace.sends("experts")
    shape, sizes = trace.walk.expert_shape, trace.split.mesh_axes
    senders = math.prod(sizes[a] for a in part.exchange_axes)
    rows, moved = shape.tokens * senders, bool(sends)
    count = shape.tokens * shape.top_k if form == "chosen" else here
    spread, r = count * rows * trace.config.d_model * float(trace.item), trace.residual

    def products(reads_stream: bool) -> list[Step]:
        steps: list[Step] = []
        for name, (n, k) in trace.matrices("mlp", reads_stream=reads_stream).items():
            found = trace.by_kernel(name, rows, n, k, count, picked=form == "chosen")
            if found:
                steps += found
                continue
            if form == "chosen":
                # XLA unpacks only what it picks.
                packed, weight = trace.weights.form_of(name), f"{name}.w"
                dense = float(count * n * k * trace.item)
                read = float(count * packed.n_bytes(k, n)) if packed else dense
                steps += [Kernel(f"{name}.picked", ((weight, read),), dense, weights=(weight,)),
                          gemm(name, rows, n, k, trace.dtype, trace.item, batch=count,
                               b=f"{name}.picked")]  # fmt: skip
            else:
                steps += trace.weights.unpacked(name, n, k, trace.item, here)
                steps += trace.weights.multiplied(name, rows, n, k, trace.dtype, trace.item, here)
        return steps

    half = (len(sends) + 1) // 2
    return [
        *trace.product("router", trace.config.num_experts, trace.config.d_model),
        *(passes(f"route {i}", r / 64, r / 64) for i in range(8 if moved else 4)),
        *([passes("pack", 2 * r, 2 * r)] if moved else []),
        *sends[:half],
        passes("spread", r, spread), *products(True), _activated(trace, count * rows),
        *products(False), *([passes("put", spread, r)] if moved else []), *sends[half:],
        passes("combine", r if moved else spread, r),
    ]  # fmt: skip


def _shared_mlp(trace: Trace) -> list[Step]:
    """Trace the experts that every token passes, and the sum with the others' output."""
    if not trace.config.shared_experts:
        return []
    first, r = trace.matrices("mlp", reads_stream=True, shared=True), trace.residual
    return [*(step for name, size in first.items() for step in trace.product(name, *size)),
            _activated(trace, trace.tokens, shared=True),
            *trace.products_behind("mlp", shared=True), passes("shared added", 2 * r, r)
            ]  # fmt: skip


def _shared_backward(trace: Trace) -> list[Step]:
    """Trace the gradients of `_shared_mlp`: two products for each matrix."""
    steps: list[Step] = []
    for reads_stream in (False, True):
        sizes = trace.matrices("mlp", reads_stream=reads_stream, shared=True)
        for name, (n, k) in sizes.items():
            args = trace.dtype, trace.item
            steps += [gemm(f"{name} dx", trace.tokens, k, n, *args, b=f"{name}.w"),
                      gemm(f"{name} dw", k, n, trace.tokens, *args, b=f"{name}.x")]  # fmt: skip
        if sizes and not reads_stream:
            first = trace.matrices("mlp", reads_stream=True, shared=True)
            wide = 1.5 * trace.tokens * trace.item * sum(n for n, _ in first.values())
            steps.append(passes("shared act back", wide, wide))
    return steps


def expert_mlp_backward(trace: Trace) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
    """Trace the backward pass of the experts in chunks, sends left out."""
    r, item = trace.residual, trace.item
    here = trace.config.num_experts // trace.split.count("expert")
    matrices = sum(n * k for n, k in _matrices(trace).values())
    part: Any = trace.split.experts
    chunks, _ = part.chunked(trace.walk.expert_shape, trace.split.mesh_axes)
    rows = r * trace.config.experts_per_token
    wide, cut = float(here * matrices * _WIDE), float(matrices * item)
    tiles = replace(_tiles(trace, here), name="tiles back", body="tile back")
    each: tuple[Step, ...] = (tiles,)
    if here > 1:
        each = (passes("cut back", cut, cut), tiles, passes("put back", 0.0, cut))
    chunk: list[Step] = [
        passes("pack back", 6 * rows / chunks, 6 * rows / chunks),
        Loop("experts back", here, "expert back", "test"), passes("dw", 2 * wide, wide),
    ]  # fmt: skip
    e = trace.config.num_experts
    router = [gemm("router dx", trace.tokens, trace.config.d_model, e, trace.dtype, item),
              gemm("router dw", trace.config.d_model, e, trace.tokens, trace.dtype, item),
              passes("routes back", r / 2, r / 2)]  # fmt: skip
    return [*chunk * chunks, *router, *_shared_backward(trace)], {
        "expert back": each,
        "tile back": _tile_backward(trace),
    }


def _tile_backward(trace: Trace) -> tuple[Step, ...]:
    """Trace the gradients of one expert's tile of rows: first matrices again, then two products
    for each matrix, whose gradient adds up in float32."""
    part: Any = trace.split.experts
    rows, args = part.tile, (trace.dtype, trace.item)
    moved = float(rows * trace.config.d_model * trace.item)
    steps: list[Step] = [passes("cut rows", 2 * moved, 2 * moved)]
    for name, (n, k) in trace.matrices("mlp", reads_stream=True).items():
        steps += trace.weights.multiplied(name, rows, n, k, *args)
    for name, (n, k) in _matrices(trace).items():
        size = float(n * k)
        steps += [gemm(f"{name} dx", rows, k, n, *args, b=f"{name}.w"),
                  gemm(f"{name} dw", k, n, rows, *args, b=f"{name}.x"),
                  passes(f"{name} sum", size * (_WIDE + trace.item), size * _WIDE)]  # fmt: skip
    return (*steps, _activated(trace, rows), passes("put rows", moved, moved))


def _matrices(trace: Trace) -> dict[str, tuple[int, int]]:
    """Return the (outputs, inputs) of an expert's matrices, by name."""
    both = (trace.matrices("mlp", reads_stream=reads) for reads in (True, False))
    return {name: size for sizes in both for name, size in sizes.items()}


def _activated(trace: Trace, rows: int, *, shared: bool = False) -> Kernel:
    """Make the kernel of the activation between the first matrices and the last."""
    first = trace.matrices("mlp", reads_stream=True, shared=shared)
    read = tuple((name, float(rows * n * trace.item)) for name, (n, _) in first.items())
    return Kernel("shared.act" if shared else "act", read, read[0][1])


def _matrix_bytes(trace: Trace, dense: bool) -> float:
    """Count the bytes of one expert's matrices, dense or as they are stored."""
    total = 0.0
    for name, (n, k) in _matrices(trace).items():
        form = None if dense else trace.weights.form_of(name)
        total += float(form.n_bytes(k, n)) if form else float(n * k * trace.item)
    return total


def _tile(trace: Trace) -> tuple[Step, ...]:
    """Trace one expert's products for one tile of rows: at most all those that arrive."""
    part: Any = trace.split.experts
    _, each = part.chunked(trace.walk.expert_shape, trace.split.mesh_axes)
    here = trace.config.num_experts // trace.split.count("expert")
    senders = math.prod(trace.split.mesh_axes[a] for a in part.exchange_axes)
    arriving = each * min(trace.config.experts_per_token, here) * senders
    rows = min(part.tile, arriving)
    moved = float(rows * trace.config.d_model * trace.item)

    def products(reads_stream: bool) -> list[Step]:
        sizes = trace.matrices("mlp", reads_stream=reads_stream)
        return [step for name, (n, k) in sizes.items()
                for step in trace.weights.multiplied(name, rows, n, k, trace.dtype,
                                                     trace.item)]  # fmt: skip

    return (
        *products(True), _activated(trace, rows), *products(False),
        passes("put", moved, moved), passes("cut", moved, moved),
    )  # fmt: skip


def _expert(trace: Trace, here: int, matrices: float) -> tuple[Step, ...]:
    """Trace all tiles of one expert; the busiest device has one busy expert among those `here`."""
    tiles = _tiles(trace, here)
    if here == 1:
        return (tiles,)
    # Each expert's matrices are copied out of its layer's.
    return (Start("cut", passes("cut", matrices, matrices)), Wait("cut"), tiles)


def _tiles(trace: Trace, here: int) -> Loop:
    """Return the loop over all tiles of one expert."""
    routing = expected_routing(trace.config, trace.strategy, trace.workload, trace.decoder)
    assert routing is not None
    busiest = 1 + (trace.skew - 1) / here
    return Loop(
        "tiles", busiest * routing.trips[TILES_SCOPE], "tile", "test", known=False,
        same_weights=True,
    )  # fmt: skip


def _in_chunks(trace: Trace, experts: Loop, rows: float) -> list[Step]:
    """Trace the experts chunk by chunk, each beside the exchange of the next."""
    part: Any = trace.split.experts
    chunks, _ = part.chunked(trace.walk.expert_shape, trace.split.mesh_axes)
    sends: list[Send] = trace.sends("experts")
    each = math.ceil(len(sends) / chunks) if sends else 0
    steps: list[Step] = [*sends[:each]]
    for i in range(chunks):
        starts = [Start(f"chunk {i}.{j}", s)
                  for j, s in enumerate(sends[(i + 1) * each : (i + 2) * each])]  # fmt: skip
        steps += [*starts, passes("pack", 2 * rows / chunks, 2 * rows / chunks), experts,
                  *(Wait(s.name) for s in starts)]  # fmt: skip
    return steps
