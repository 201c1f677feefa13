"""The values of a study of regimes: what is asked, as a grid, and what is found at each place."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

LAYERWISE, BASELINE, NO_COMMUNICATION = "layerwise", "tensor_pipeline", "data_parallel"
NAMES = (LAYERWISE, BASELINE, NO_COMMUNICATION)
PIPELINES = (LAYERWISE, BASELINE)
Attention = Literal["MHA", "GQA"]
HEAD_DIM, GROUP = 128, 8  # queries that share a key in GQA
# Formats of the attention's and of the MLP's matrices, by the name of the storage.
STORED: dict[str, tuple[str, str] | None] = {
    "float16": None,
    "int8": ("int8", "int8"),
    "int8, MLP int8+2:4": ("int8", "int8+2:4"),
    "int4": ("int4", "int4"),
    "int4+2:4": ("int4+2:4", "int4+2:4"),
}


@dataclass(frozen=True)
class Grid:
    """What is asked: every combination.

    Attributes:
      clusters: by name. phases: prefill, decode.
      attentions: MHA, GQA. stored: names of STORED.
      unpackings: of what is packed: as XLA does, as a kernel would.
      batches: sequences. widths: d_model. depths: layers. seq_len: tokens of a prompt, or in the
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
        """The same with some axes changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Place:
    """One place of the grid (tag: modelled).

    Attributes:
      cluster, phase, attention, stored, unpacking, depth, batch, width: where; unpacking is ""
        where weights are dense.
      seconds: strategy -> of a prefill of the batch, or of one decoding step.
      steady_s: strategy -> the same if other requests kept it full, of PIPELINES.
      hit_rate: layer-wise's weight reads that the L2 cache serves; 0 where it cannot run.
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
        """The fastest; "" where nothing runs."""
        return min(self.seconds, key=lambda n: self.seconds[n]) if self.seconds else ""

    def lead_over(self, *others: str) -> float | None:
        """How many times longer the fastest of `others` takes than layer-wise; below 1 layer-wise
        is behind. None where layer-wise or all of them cannot run."""
        them = [self.seconds[n] for n in others if n in self.seconds]
        if LAYERWISE not in self.seconds or not them:
            return None
        return min(them) / self.seconds[LAYERWISE]


def wins(places: Sequence[Place], name: str) -> list[Place]:
    """Places where a strategy is the fastest."""
    return [p for p in places if p.winner == name]
