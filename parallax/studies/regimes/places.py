"""The values of a study of regimes: the grid, and the result at each of its places."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

LAYERWISE, BASELINE, NO_COMMUNICATION = "layerwise", "tensor_pipeline", "data_parallel"
NAMES = (LAYERWISE, BASELINE, NO_COMMUNICATION)
PIPELINES = (LAYERWISE, BASELINE)
Attention = Literal["MHA", "GQA"]
HEAD_DIM, GROUP = 128, 8  # queries that share a key in GQA
# Formats of the attention's and the MLP's matrices, by the name of the storage.
STORED: dict[str, tuple[str, str] | None] = {
    "float16": None,
    "int8": ("int8", "int8"),
    "int8, MLP int8+2:4": ("int8", "int8+2:4"),
    "int4": ("int4", "int4"),
    "int4+2:4": ("int4+2:4", "int4+2:4"),
}


@dataclass(frozen=True)
class Grid:
    """The grid of a study: every combination of its values.

    Attributes:
      clusters: names. phases: prefill, decode.
      attentions: MHA, GQA. stored: names of STORED.
      unpackings: how packed weights are unpacked: as XLA does, or as a kernel would.
      batches: sequences. widths: d_model. depths: layers. seq_len: tokens in a prompt, or in the
        cache.
    """

    clusters: tuple[str, ...] = ("h100_2x8", "h100_nvl16")
    phases: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
    attentions: tuple[Attention, ...] = ("MHA", "GQA")
    stored: tuple[str, ...] = tuple(STORED)
    unpackings: tuple[Literal["xla", "kernel"], ...] = ("xla", "kernel")
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    widths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    depths: tuple[int, ...] = (16, 64)
    seq_len: int = 2048

    def __post_init__(self):
        if unknown := set(self.stored) - set(STORED):
            raise ValueError(
                f"regimes: unknown storage {sorted(unknown)}. Use some of: {', '.join(STORED)}."
            )
        if bad := [w for w in self.widths if w % (HEAD_DIM * GROUP)]:
            raise ValueError(
                f"regimes: widths must be multiples of {HEAD_DIM * GROUP} (heads of {HEAD_DIM}, "
                f"{GROUP} to a key in GQA); got {bad}."
            )
        if bad := [n for n in (*self.batches, *self.depths, self.seq_len) if n < 1]:
            raise ValueError(f"regimes: batches, depths and seq_len are at least 1; got {bad}.")

    def replace(self, **changes: Any) -> "Grid":
        """Return the same grid with some axes changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Place:
    """The result at one place of the grid (tag: modelled).

    Attributes:
      cluster, phase, attention, stored, unpacking, depth, batch, width: coordinates of the place;
        unpacking is "" if weights are dense.
      seconds: strategy -> seconds of a prefill of the batch, or of one decoding step.
      steady_s: strategy of PIPELINES -> the same if other requests kept the pipeline full.
      hit_rate: share of layer-wise's weight reads that the L2 cache serves; 0 if it cannot run.
      why_not: strategy -> why it cannot run, or does not fit.
    """

    cluster: str
    phase: str
    attention: str
    stored: str
    unpacking: str
    depth: int
    batch: int
    width: int
    seconds: Mapping[str, float]
    steady_s: Mapping[str, float] = field(default_factory=dict)
    hit_rate: float = 0.0
    why_not: Mapping[str, str] = field(default_factory=dict)

    @property
    def winner(self) -> str:
        """Name of the fastest strategy; "" if none runs."""
        return min(self.seconds, key=lambda n: self.seconds[n]) if self.seconds else ""

    def lead_over(self, *others: str) -> float | None:
        """Compute the fastest of `others`' time over layer-wise's.

        Below 1, layer-wise is slower. None if layer-wise, or all of the others, cannot run.
        """
        times = [self.seconds[n] for n in others if n in self.seconds]
        if LAYERWISE not in self.seconds or not times:
            return None
        return min(times) / self.seconds[LAYERWISE]


def wins(places: Sequence[Place], name: str) -> list[Place]:
    """Return the places where a strategy is the fastest."""
    return [p for p in places if p.winner == name]
