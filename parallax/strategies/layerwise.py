"""The layer-wise strategy: one contiguous group of layers per device (paper `cache_layerwise`)."""

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
    """Place whole layers on each device; microbatches travel from device to device.

    Args:
      stages: devices, one per stage.
      layers: layers of each stage, in order; None distributes the model's layers evenly.
      microbatches: None takes the caller's or the paper's number.
      handoff: "lockstep" (M + S - 1 ticks), "overlapped" (M + 2 (S - 1) ticks, each handoff beside
        the next tick's layers), or "auto": overlapped where M >= 4 (S - 1).

    Cost: one handoff [b, L, D] per tick; nothing inside a layer. The bubble is (S - 1) / M, twice
      that when overlapped; stages shorter than the longest execute layers of zeros meanwhile.
    Reference: papers `cache_layerwise` and `compressed_layerwise`.
    """
    return Strategy(
        "layerwise",
        MeshSpec({"stage": stages}),
        Rules(layers="stage", vocab="stage", act_vocab="stage"),
        layers=Pipeline("stage", microbatches, handoff, layers),
    )
