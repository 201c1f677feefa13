"""What a piece of training software adds to the arithmetic: launches, overlaps, kept bytes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parallax.analytic.described.stages import Placement
from parallax.codec import FileFormat

_SHIPPED = Path(__file__).parent / "shipped.json"


@dataclass(frozen=True)
class Implementation:
    """The constants of a piece of training software.

    Attributes:
      name: "nanotron", "megatron" or another.
      placement: how layers are placed on stages, see `place_stages`.
      products_share: sustained rate of matrix products, as a share of single kernels' rates.
      attention_share: the same of fused attention.
      passes: bytes that elementwise kernels move, as a multiple of fused ones' bytes.
      loss_bytes: bytes moved per logit in a microbatch's loss, forward and backward.
      host_layer_s: seconds that the host takes to launch a layer, forward and backward.
      host_between_s: further seconds per layer, microbatch and tensor rank where stages are on
        different nodes.
      start_between_s: seconds per collective and rank of tensor groups over several nodes.
      handoff_s: seconds that a stage takes per handoff, besides the bytes.
      step_s: seconds per step that depend on nothing.
      tensor_overlap, context_overlap, gather_overlap, gradient_overlap: shares of collectives of
        tensor ranks, of context ranks, of gathered weights and of gradients behind kernels.
      gradient_bytes: bytes per gradient that is summed over data ranks and microbatches.
      state_bytes: bytes per parameter of optimizer state, with the master copy of weights.
      kept: bytes that a layer keeps for its backward pass, as a multiple of fused kernels' inputs.
      kept_logit_bytes: bytes per logit that the loss holds at its peak.
      fixed_bytes: bytes of libraries, buffers of collectives and the allocator's rest.
      sources: constant -> where it is from.
    """

    name: str
    placement: Placement
    products_share: float
    attention_share: float
    passes: float
    loss_bytes: float
    host_layer_s: float
    host_between_s: float
    start_between_s: float
    handoff_s: float
    step_s: float
    tensor_overlap: float
    context_overlap: float
    gather_overlap: float
    gradient_overlap: float
    gradient_bytes: int
    state_bytes: int
    kept: float
    kept_logit_bytes: float
    fixed_bytes: float
    sources: Mapping[str, str]
