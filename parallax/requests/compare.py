"""What a comparison of strategies is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from parallax.cost import Rates
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.parallel.split import Remat
from parallax.requests import shared
from parallax.requests.option import Request, option
from parallax.rules import Phase
from parallax.strategy import Strategy

LENSES = ("verify", "compile", "predict", "measure")
DEFAULT_LENSES = ("verify", "compile", "predict")
SWEEP_LENSES = ("compile", "predict")
REPEATS = 10


def sizes_unused(small: bool) -> dict[str, str]:
    """Sizes that the small model does not take, each with the reason."""
    why = "the small model runs at sizes of its own"
    return dict.fromkeys(("batch", "seq_len", "microbatches"), why) if small else {}


@dataclass(frozen=True)
class CompareRequest(Request):
    """The arguments of `px.compare`, which documents them."""

    paper: str | None = option(
        None,
        "A paper's experiment (`parallax list papers`), or all: every paper on one page.",
    )
    model: str | ModelConfig | None = shared.model()
    strategies: Sequence[str | Strategy] | None = shared.strategies()
    mesh: str | MeshSpec | None = shared.mesh("cluster")
    batch: int | None = shared.batch(None, " Unset: the paper's, or 16.")
    seq_len: int | None = shared.seq_len(None, " Unset: the paper's, or 1024.")
    microbatches: int | None = shared.microbatches(
        "the paper's, lowered to what divides a device's sequences"
    )
    dtype: str | None = shared.dtype()
    compression: str | tuple[str, str] | None = shared.compression()
    kernels: str | None = shared.kernels()
    cluster: str | None = shared.cluster("the paper's, or h100_2x8")
    rates: Rates | str | Path | None = shared.rates()
    lenses: Sequence[str] | None = option(
        None,
        f"Some of {', '.join(LENSES)}. Unset: {','.join(DEFAULT_LENSES)}; of a sweep "
        f"{','.join(SWEEP_LENSES)}.",
        "list",
    )
    budget: str | None = option(
        None,
        "Bytes of a device that its layers are to fit in: l2, smem, l2+smem, hbm, hbm+kv (with the "
        "batch's keys and values) or a number such as 50MB: which layers go where, by how much "
        "they do not fit, what would make them. Unset: all of these, for a layer-wise paper.",
    )
    packed: bool = shared.packed()
    small: bool = shared.small()
    phase: Phase = option(
        "prefill",
        "What is compiled and predicted: a forward pass to last-position logits, a new token of "
        "every sequence after prompts of seq_len tokens, or a training step of AdamW with float32 "
        "parameters.",
        "choice",
        choices=("prefill", "decode", "train"),
    )
    remat: Remat = shared.remat(" With --phase=train.")
    text: str | None = shared.text("verify and measure")
    repeats: int = option(REPEATS, "Timed steps of measure.", "whole", at_least=1)
    sweep: str | None = option(
        None,
        "Compile and predict along an axis (devices, seq_len or batch): axis:low..high doubles, "
        "axis:4k,10k lists; k = 1024, M = 1024 k. verify runs only if --lenses names it.",
    )

    def run_lenses(self) -> Sequence[str]:
        """Lenses that run: those asked for, or the defaults."""
        if self.lenses is not None:
            return self.lenses
        return DEFAULT_LENSES if self.sweep is None else SWEEP_LENSES

    def unused(self) -> Mapping[str, str]:
        """Fields that mean nothing beside the phase and the lenses asked for."""
        lenses = set(self.run_lenses()) | (set(SWEEP_LENSES) if self.sweep else set())
        found = sizes_unused(self.small)
        if self.phase != "train":
            found["remat"] = f"phase {self.phase} has no backward pass that recomputes anything"
        if self.phase == "decode":
            found["microbatches"] = "a decoding step takes as many as its strategy has stages"
        if "measure" not in lenses:
            found["repeats"] = "the measure lens, whose steps they are, is not asked for"
        if not lenses & {"verify", "measure"}:
            found["text"] = "neither verify nor measure, which read it, is asked for"
        if not lenses - {"verify"}:
            found["kernels"] = "verify computes with XLA's; compile and predict are not asked for"
        if "predict" not in lenses:
            found["rates"] = "the predict lens, which takes them, is not asked for"
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data that runs it again; of a value that has no file, its name."""
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.model, ModelConfig):
            found["model"] = self.model.name
        if self.strategies is not None:
            found["strategies"] = [s if isinstance(s, str) else s.name for s in self.strategies]
        if isinstance(self.compression, tuple):
            found["compression"] = ",".join(self.compression)
        if self.rates is not None:
            found["rates"] = self.rates.name if isinstance(self.rates, Rates) else str(self.rates)
        found["mesh"] = None if self.mesh is None else str(self.mesh)
        found["lenses"] = None if self.lenses is None else list(self.lenses)
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], context: str) -> "CompareRequest":
        """Inverse of `to_dict`; fields that older versions did not have keep their defaults.

        Args:
          data: of a report.json.
          context: its name, for errors.

        Raises:
          ValueError: a field that this version does not know.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(
                f"{context}: field {unknown[0]!r} of 'request' is not known here. Give a report of "
                "this version of Parallax, or an older one."
            )
        return cls(**data)

    def replace(self, **changes: Any) -> "CompareRequest":
        """The same with some fields changed."""
        return replace(self, **changes)
