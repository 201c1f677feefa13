"""The request for paired runs of two strategies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.requests import shared
from parallax.requests.compare import CompareRequest, sizes_unused
from parallax.requests.option import Request, option
from parallax.strategy import Strategy


@dataclass(frozen=True)
class PairsRequest(Request):
    """The arguments of `parallax.studies.pairs.pairs.compare_pairs`, documented there."""

    paper: str | None = shared.paper()
    model: str | ModelConfig | None = shared.model()
    strategies: Sequence[str | Strategy] | None = option(
        None,
        "Two strategies, comma-separated: names (`parallax list strategies`) or strategy files "
        "(.json). Unset: the paper's baseline and its own.",
        "list",
    )
    mesh: str | MeshSpec | None = shared.mesh("cluster")
    batch: int | None = shared.batch(None, " Unset: the paper's, or 16.")
    seq_len: int | None = shared.seq_len(None, " Unset: the paper's, or 1024.")
    microbatches: int | None = shared.microbatches(
        "the paper's, lowered to a divisor of the sequences per device"
    )
    packed: bool = shared.packed()
    small: bool = shared.small()
    dtype: str | None = shared.dtype()
    compression: str | tuple[str, str] | None = shared.compression()
    cluster: str | None = shared.cluster("the paper's, or h100_2x8", "Cluster that strategies fill")
    text: str | None = shared.text("both")
    pairs: int = option(
        100, "Pairs of runs; each runs both strategies once, in random order.", "whole", at_least=2
    )
    seed: int = shared.seed()

    def unused(self) -> Mapping[str, str]:
        """Return the sizes that the small model ignores, where it runs, each with the reason."""
        return sizes_unused(self.small)

    def comparison(self, strategies: Sequence[str | Strategy]) -> CompareRequest:
        """Return the request as a comparison that measures the strategies."""
        return CompareRequest(
            paper=self.paper, model=self.model, strategies=strategies, mesh=self.mesh,
            batch=self.batch, seq_len=self.seq_len, microbatches=self.microbatches,
            packed=self.packed, small=self.small, dtype=self.dtype, compression=self.compression,
            cluster=self.cluster, text=self.text, lenses=("measure",),
        )  # fmt: skip
