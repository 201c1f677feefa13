"""Layer-wise deployment: contiguous groups of layers, one group a device (`cache_layerwise`)."""

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.layer_parts import Handoff, Pipeline
from parallax.rules import Rules
from parallax.strategy import Strategy


def layerwise(
    stages: int = 16,
    *,
    layers: tuple[int, ...] | None = None,
    microbatches: int | None = None,
    handoff: Handoff = "auto",
) -> Strategy:
    """Whole layers on each device; microbatches travel from device to device.

    Args:
      stages: devices.
      layers: layers of each, in order; None deals the model's layers out evenly.
      microbatches: None is what the caller or the paper says.
      handoff: "lockstep" (M + S - 1 ticks), "overlapped" (M + 2 (S - 1) ticks, each handoff beside
        the next tick's layers), or "auto": overlapped where M >= 4 (S - 1).

    Cost: one handoff [b, L, D] a tick; nothing inside a layer. Bubble (S - 1) / M, twice that when
      overlapped; a stage shorter than the longest waits, and executes layers of zeros meanwhile.
    Reference: papers `cache_layerwise` and `compressed_layerwise`.
    """
    return Strategy(
        "layerwise",
        MeshSpec({"stage": stages}),
        Rules(layers="stage", vocab="stage", act_vocab="stage"),
        layers=Pipeline("stage", microbatches, handoff, layers),
    )
