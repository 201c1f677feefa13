"""What a piece of training software adds to the arithmetic: launches, overlaps, kept bytes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from parallax.analytic.described.stages import Placement
from parallax.codec import FileFormat

ContextScheme = Literal["ring", "all-to-all"]
_SHIPPED = Path(__file__).parent / "shipped.json"


@dataclass(frozen=True)
class Implementation:
    """The constants of a piece of training software.

    Attributes:
      name: "nanotron", "megatron" or another.
      placement: how layers are placed on stages, see `place_stages`.
      blocking: the host waits until collectives of tensor ranks have started on all of them.
      context: how ranks of a sequence's parts attend: keys and values around a "ring", or an
        "all-to-all" that gives every rank whole sequences of some heads.
      products_share: sustained rate of matrix products, as a share of single kernels' rates.
      attention_share: the same of fused attention.
      passes: bytes that elementwise kernels move, as a multiple of fused ones' bytes.
      loss_bytes: bytes moved per logit in a microbatch's loss, forward and backward.
      host_layer_s: seconds that the host takes to launch a layer, forward and backward.
      host_rank_s: further seconds per layer, microbatch and tensor rank that the host takes.
      start_between_s: seconds per collective and rank of tensor groups over several nodes.
      handoff_s: seconds that a stage takes per handoff, besides the bytes.
      step_s: seconds per step that depend on nothing.
      tensor_overlap, context_overlap, gather_overlap, gradient_overlap: shares of collectives of
        tensor ranks, of context ranks, of gathered weights and of gradients behind kernels.
      gradient_bytes: bytes per gradient that is summed over data ranks and microbatches.
      buffer_bytes: bytes per parameter of buffers in which gradients or weights are moved.
      state_bytes: bytes per parameter of optimizer state, with the master copy of weights.
      kept: bytes that a layer keeps for its backward pass, as a multiple of fused kernels' inputs.
      kept_gathered: inputs of products per layer that are kept as tensor ranks gathered them.
      kept_logit_bytes: bytes per logit that the loss holds at its peak.
      fixed_bytes: bytes of libraries, buffers of collectives and the allocator's rest.
      sources: constant -> where it is from.
    """

    name: str
    placement: Placement
    blocking: bool
    context: ContextScheme
    products_share: float
    attention_share: float
    passes: float
    loss_bytes: float
    host_layer_s: float
    host_rank_s: float
    start_between_s: float
    handoff_s: float
    step_s: float
    tensor_overlap: float
    context_overlap: float
    gather_overlap: float
    gradient_overlap: float
    gradient_bytes: int
    buffer_bytes: float
    state_bytes: int
    kept: float
    kept_gathered: float
    kept_logit_bytes: float
    fixed_bytes: float
    sources: Mapping[str, str]

    def __post_init__(self):
        for name in (*SHARES, *OVERLAPS):
            value, least = getattr(self, name), 0.0
            if not least <= value <= 1 or (value == 0 and name in SHARES):
                raise ValueError(
                    f"Implementation {self.name!r}: {name} is a share, got {value}. Use 0 to 1."
                )


SHARES = ("products_share", "attention_share")
OVERLAPS = ("tensor_overlap", "context_overlap", "gather_overlap", "gradient_overlap")


@dataclass(frozen=True)
class Shipped:
    """The implementations that Parallax ships, in the file beside this module."""

    implementations: tuple[Implementation, ...]


FILE = FileFormat(
    Shipped, "file of implementations", "implementations_version", 1,
    "Make it with `python -m parallax.studies.fitting`.",
)  # fmt: skip


@functools.lru_cache
def implementations() -> Mapping[str, Implementation]:
    """Load the shipped implementations by name."""
    made = FILE.load(_SHIPPED).implementations
    return MappingProxyType({software.name: software for software in made})


def implementation(name: str) -> Implementation:
    """Return a shipped implementation; ValueError if there is none of that name."""
    known = implementations()
    if name not in known:
        raise ValueError(
            f"unknown implementation {name!r}. Use one of: {', '.join(known)}; or "
            "phase=serve for software that serves."
        )
    return known[name]
