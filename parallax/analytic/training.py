"""The synthetic trace of a training step: microbatches forward and backward, then the update."""

from typing import NamedTuple

from parallax.analytic.kernels import gemm, passes
from parallax.analytic.layer import Bodies, layer_steps
from parallax.analytic.layer_backward import backward_steps
from parallax.analytic.ticks import Ticks, ticks_of
from parallax.analytic.train_memory import PIECE_BYTES, Elements, elements_of, kept_by_layer
from parallax.analytic.train_trace import TrainTrace
from parallax.hlo.execution_trace import Call, Kernel, Loop, Step

_WIDE = 4
_SLOT_COPIES = 3
_STATE = 3  # parameters and two moments


class _Sizes(NamedTuple):
    """Numbers of elements and bytes that passes over memory move.

    Attributes:
      of: elements of parameters per device.
      param, item: bytes per parameter, and per element of the model's dtype.
      gathers_layers: whether layers gather their weights where they use them.
      kept: bytes that a layer keeps for its backward pass.
    """

    of: Elements
    param: int
    item: int
    gathers_layers: bool
    kept: float

    @property
    def layer(self) -> float:
        """Elements of a layer's weights as they are stored."""
        return self.of.layers / self.of.depth

    def cast(self, name: str, elements: float) -> Kernel:
        """Make the pass that casts stored weights to the model's dtype."""
        return passes(name, elements * self.param, elements * self.item)


def train_steps(trace: TrainTrace) -> dict[str, tuple[Step, ...]]:
    """Trace a training step: computation -> its steps, starting with "entry"."""
    program, strategy = trace.step.program, trace.strategy
    elements = elements_of(trace.step.sharded.untied)
    sizes = _Sizes(
        elements, program.param_bytes, trace.item,
        strategy.shards_weights and strategy.gather == "layer",
        kept_by_layer(trace.step.sharded, elements, program.remat),
    )  # fmt: skip
    layer, inner = _layer(trace, sizes)
    back, more = _layer_back(trace, sizes)
    inputs_only = tuple(s for s in back if not s.name.endswith(" dw"))
    stages = strategy.split().count("layers")
    ticks = ticks_of(strategy.layers, stages, trace.workload.microbatches)
    steps = _scanned(trace, sizes) if ticks is None else _staged(trace, sizes, ticks)
    parts = parts_of(trace.walk.useful, ticks, is_uniform=bool(trace.rings()))
    entry = [Loop(f"each {name}", n, name, "test") if n > 1 else Call(name)
             for name, n in parts.items() if n]  # fmt: skip
    return {
        "entry": tuple(entry), **steps, "layer": tuple(layer), "layer back": tuple(back),
        "inputs back": inputs_only,
        "test": (passes("test", 4.0, 1.0),), **inner, **more, **trace.bodies(),
    }  # fmt: skip


def parts_of(microbatches: int, ticks: Ticks | None, *, is_uniform: bool) -> dict[str, float]:
    """Return how often a step runs each of its parts, computations of its trace, in order.

    Args:
      microbatches: number of microbatches.
      ticks: the ticks of its pipeline; None without stages.
      is_uniform: whether all stages run whatever any stage runs.
    """
    if ticks is None:
        return {"start": 1, "microbatch": microbatches, "update": 1}
    counts = ticks.runs if is_uniform else ticks.slowest
    each = {part: counts.get(kind, 0) for part, kind in ticks.parts.items()}
    return {"start": 1, **each, "end of microbatch": microbatches, "update": 1}


def _layer(trace: TrainTrace, sizes: _Sizes) -> tuple[list[Step], Bodies]:
    starts, waits = trace.beside(backward=False)
    steps, inner = layer_steps(trace)
    # What is kept is copied into the stack of all layers.
    return [*starts, sizes.cast("cast", sizes.layer), *steps,
            passes("keep", sizes.kept, sizes.kept), *waits], inner  # fmt: skip


def _layer_back(trace: TrainTrace, sizes: _Sizes) -> tuple[list[Step], Bodies]:
    starts, waits = trace.beside(backward=True)
    steps, inner = backward_steps(trace, trace.step.program.remat, trace.sent_back())
    stored = sizes.layer
    return [
        *starts, sizes.cast("cast", stored), *steps, *trace.repeated("layer"),
        passes("gradients in place", stored * sizes.item, stored * sizes.param), *waits,
    ], inner  # fmt: skip


def _start(trace: TrainTrace, sizes: _Sizes, adds_up: bool) -> list[Step]:
    """Trace what comes first: weights that are gathered once, and zeros for sums of gradients."""
    elements = sizes.of.layers + sizes.of.ends
    zeros = [passes("zeros", 0.0, elements * sizes.param)] if adds_up else []
    once = [] if sizes.gathers_layers else [sizes.cast("cast all", elements)]
    return [*(once if trace.strategy.shards_weights else []), *zeros]


def _update(trace: TrainTrace, sizes: _Sizes) -> list[Step]:
    """Trace the sums of gradients and the optimizer's update of its share of the state."""
    size = sizes.of.state * sizes.param
    return [*trace.repeated("step"), passes("update", (_STATE + 1) * size, _STATE * size)]


def _embedded(trace: TrainTrace) -> list[Step]:
    share = trace.residual / trace.split.count("lookup")
    return [passes("embed", share, share), passes("widened", trace.residual, trace.residual)]


def _head(trace: TrainTrace, sizes: _Sizes) -> list[Step]:
    """Trace the loss of one microbatch with its gradients, and the gradient of the embeddings."""
    t, d, item, dtype = trace.tokens, trace.config.d_model, trace.item, trace.dtype
    columns = trace.step.sharded.columns // trace.split.count("vocab")
    logits = float(t * columns * _WIDE)
    pieces = max(1.0, logits / PIECE_BYTES)
    table = sizes.of.ends * sizes.param / 2
    return [
        sizes.cast("cast unembedding", d * columns), passes("last norm", trace.residual,
                                                            trace.residual),
        gemm("logits", t, columns, d, dtype, item, out_item=_WIDE),
        passes("maxima", logits, 0.0), passes("sums", logits, 0.0),
        passes("dlogits", 2 * logits, logits), passes("narrow", logits, logits / 2),
        gemm("head dx", t, d, columns, dtype, item, b="logits.w"),
        gemm("head dw", d, columns, t, dtype, item, b="logits.x", out_item=_WIDE),
        passes("head sum", (pieces - 1) * d * columns * _WIDE, (pieces - 1) * d * columns * _WIDE),
        passes("last norm back", 5 * trace.residual, 3 * trace.residual),
        passes("zero table", 0.0, table), passes("rows back", 3 * trace.residual, trace.residual),
    ]  # fmt: skip


def _added(sizes: _Sizes, name: str, elements: float) -> Kernel:
    """Make the pass that adds gradients to their sums."""
    return passes(name, 2 * elements * sizes.param, elements * sizes.param)


def _scanned(trace: TrainTrace, sizes: _Sizes) -> dict[str, tuple[Step, ...]]:
    """Trace one microbatch after another, each forward and backward through all layers."""
    layers, microbatches = sizes.of.depth, trace.walk.useful
    held = sizes.of.layers + sizes.of.ends
    zeros = sizes.of.layers * sizes.param + layers * sizes.kept
    microbatch = [
        *_embedded(trace), passes("zero stacks", 0.0, zeros),
        Loop("layers", layers, "layer", "test"), *_head(trace, sizes),
        *trace.repeated("microbatch"),
        Loop("layers back", layers, "layer back", "test"),
        *([_added(sizes, "add", held)] if microbatches > 1 else []),
    ]  # fmt: skip
    return {
        "start": tuple(_start(trace, sizes, microbatches > 1)),
        "microbatch": tuple(microbatch),
        "update": tuple(_update(trace, sizes)),
    }


def _staged(trace: TrainTrace, sizes: _Sizes, ticks: Ticks) -> dict[str, tuple[Step, ...]]:
    """Trace the ticks of a pipeline, each as long as its slowest action, and the ends beside them.

    The embedding and the loss are on all stages. What a stage keeps waits in slots; where layers
    pass data around a ring, all stages run every action.
    """
    layers = sizes.of.depth / ticks.chunks
    # What is kept for a microbatch goes into the branch, out of it, and into its slot.
    copied = _SLOT_COPIES * layers * sizes.kept
    slot = passes("slot", copied, copied)
    forward = Loop("layers", layers, "layer", "test")
    back = Loop("layers back", layers, "layer back", "test")
    summed = _added(sizes, "add", sizes.of.layers / ticks.chunks)
    inputs = Loop("inputs back", layers, "inputs back", "test")
    bodies: dict[str, tuple[Step, ...]] = {
        "forward tick": (forward, slot),
        "backward tick": (slot, back, summed),
        "inputs tick": (slot, inputs),
    }
    ends = [*_embedded(trace), *_head(trace, sizes), _added(sizes, "add ends", sizes.of.ends),
            *trace.repeated("microbatch")]  # fmt: skip
    return bodies | {
        "start": tuple(_start(trace, sizes, True)),
        "end of microbatch": tuple(ends),
        "update": tuple(_update(trace, sizes)),
    }
