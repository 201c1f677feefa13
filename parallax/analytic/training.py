"""The synthetic trace of a training step: microbatches forward and backward, then the update."""

from collections.abc import Sequence
from typing import NamedTuple

from parallax.analytic.kernels import gemm, passes
from parallax.analytic.layer import Bodies, layer_steps
from parallax.analytic.layer_backward import backward_steps
from parallax.analytic.ticks import Ticks, ticks_of
from parallax.analytic.train_memory import Elements, elements_of, kept_bytes
from parallax.analytic.train_trace import TrainTrace
from parallax.hlo.execution_trace import Loop, Step

_WIDE = 4
_PIECE_BYTES = 256 << 20


class _Sizes(NamedTuple):
    """Bytes that passes over memory move.

    Attributes:
      parameters: elements per device.
      param: bytes per parameter.
      layer: elements of a layer's matrices as they are stored, and gathered.
      kept: what a layer keeps for its backward pass.
    """

    parameters: Elements
    param: int
    layer: tuple[float, float]
    kept: float


def train_steps(trace: TrainTrace) -> dict[str, tuple[Step, ...]]:
    """Trace a training step: computation -> its steps, starting with "entry"."""
    elements = elements_of(trace.step.sharded.untied)
    sizes = _Sizes(
        elements, trace.step.program.param_bytes,
        (elements.layers / elements.depth, elements.whole_layers / elements.depth),
        kept_bytes(trace.step.sharded, elements, trace.step.program.remat),
    )  # fmt: skip
    layer, inner = _forward(trace, sizes)
    back, more = _backward(trace, sizes)
    ticks = ticks_of(trace.strategy, trace.workload.microbatches)
    bodies: Bodies = {
        "layer": tuple(layer), "layer back": tuple(back), **inner, **more,
        "test": (passes("test", 4.0, 1.0),), **trace.bodies(),
    }  # fmt: skip
    steps = _scanned(trace, sizes) if ticks is None else _staged(trace, sizes, ticks)
    return steps | bodies
