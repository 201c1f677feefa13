"""The request for a comparison of strategies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from parallax.cost import Rates
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.parallel.layer_parts import ScheduleName
from parallax.parallel.remat import REPLACED_REMAT, Remat
from parallax.parallel.sharded_weights import Gather
from parallax.requests import shared
from parallax.requests.option import Request, option
from parallax.rules import Phase
from parallax.strategies import TrainingOptions
from parallax.strategy import Strategy

LENSES = ("verify", "compile", "predict", "measure")
DEFAULT_LENSES = ("verify", "compile", "predict")
SWEEP_LENSES = ("compile", "predict")
REPEATS = 10


def sizes_unused(small: bool) -> dict[str, str]:
    """Return the sizes that the small model ignores, each with the reason."""
    why = "the small model runs at sizes of its own"
    return dict.fromkeys(("batch", "seq_len", "microbatches"), why) if small else {}


@dataclass(frozen=True)
class CompareRequest(Request):
    """The arguments of `px.compare`, documented there."""

    paper: str | None = option(
        None,
        "A paper's experiment (`parallax list papers`), or all for every paper on one page.",
    )
    model: str | ModelConfig | None = shared.model()
    strategies: Sequence[str | Strategy] | None = shared.strategies()
    mesh: str | MeshSpec | None = shared.mesh("cluster")
    batch: int | None = shared.batch(None, " Unset: the paper's, or 16.")
    seq_len: int | None = shared.seq_len(None, " Unset: the paper's, or 1024.")
    microbatches: int | None = shared.microbatches(
        "the paper's, lowered to a divisor of the sequences per device"
    )
    dtype: str | None = shared.dtype()
    compression: str | tuple[str, str] | None = shared.compression()
    kernels: str | None = shared.kernels()
    cluster: str | None = shared.cluster("the paper's, or h100_2x8")
    network: str | None = shared.network()
    rates: Rates | str | Path | None = shared.rates()
    lenses: Sequence[str] | None = option(
        None,
        f"Lenses to run, among {', '.join(LENSES)}. Unset: {','.join(DEFAULT_LENSES)}, or "
        f"{','.join(SWEEP_LENSES)} for a sweep.",
        "list",
    )
    budget: str | None = option(
        None,
        "Budget per device for the placement of layers: l2, smem, l2+smem, hbm, hbm+kv (with the "
        "batch's KV cache) or a size such as 50MB. Shows which layers go where, by how much they "
        "do not fit and what would make them fit. Unset: all of these, for a layer-wise paper.",
    )
    packed: bool = shared.packed()
    small: bool = shared.small()
    phase: Phase = option(
        "prefill",
        "What to compile and predict: a forward pass to last-position logits (prefill), one new "
        "token per sequence after prompts of seq_len tokens (decode), or a training step of AdamW "
        "with float32 parameters (train).",
        "choice",
        choices=("prefill", "decode", "train"),
    )
    remat: Remat = shared.remat(" Only with --phase=train.")
    shard_weights: str | Sequence[str] | None = shared.shard_weights()
    gather: Gather | None = shared.gather()
    shard_optimizer: str | Sequence[str] | None = shared.shard_optimizer(
        " Only with --phase=train."
    )
    schedule: ScheduleName | None = shared.schedule(" Only with --phase=train.")
    virtual_stages: int | None = shared.virtual_stages(" Only with --phase=train.")
    text: str | None = shared.text("verify and measure")
    repeats: int = option(REPEATS, "Timed steps of the measure lens.", "whole", at_least=1)
    profile: bool = option(
        False,
        "Profile further steps of the measure lens: a trace that XProf and TensorBoard open, in "
        "profile/STRATEGY of --out, and in the report measured against modelled time, operation "
        "by operation.",
        "switch",
    )
    sweep: str | None = option(
        None,
        "Compile and predict along an axis (devices, seq_len or batch): axis:low..high doubles "
        "from low to high, axis:4k,10k lists values; k = 1024, M = 1024 k. The verify lens runs "
        "only if --lenses names it.",
    )

    def run_lenses(self) -> Sequence[str]:
        """Return the lenses to run: those asked for, or the defaults."""
        if self.lenses is not None:
            return self.lenses
        return DEFAULT_LENSES if self.sweep is None else SWEEP_LENSES

    def unused(self) -> Mapping[str, str]:
        """Return the fields that the phase or the lenses ignore, each with the reason."""
        lenses = set(self.run_lenses()) | (set(SWEEP_LENSES) if self.sweep else set())
        found = sizes_unused(self.small)
        if self.phase != "train":
            found["remat"] = f"phase {self.phase} has no backward pass that recomputes anything"
            found["shard_optimizer"] = f"phase {self.phase} has no optimizer"
            for name in ("schedule", "virtual_stages"):
                found[name] = f"phase {self.phase} has no backward passes to order"
        if self.phase == "decode":
            found["microbatches"] = "a decoding step takes as many as its strategy has stages"
        if "measure" not in lenses:
            found["repeats"] = "the measure lens, whose steps they are, is not asked for"
            found["profile"] = "the measure lens, whose steps it profiles, is not asked for"
        if not lenses & {"verify", "measure"}:
            found["text"] = "neither verify nor measure, which read it, is asked for"
        if not lenses - {"verify"}:
            found["kernels"] = "verify computes with XLA's; compile and predict are not asked for"
        if "predict" not in lenses and not self.profile:
            found["rates"] = "the predict lens, which takes them, is not asked for"
        return found

    def training_options(self) -> TrainingOptions:
        """Return what the request changes in every strategy."""
        return TrainingOptions(
            self.shard_weights, self.gather, self.shard_optimizer, self.schedule,
            self.virtual_stages,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that reproduces the request; values without a file give their names."""
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.model, ModelConfig):
            found["model"] = self.model.name
        if self.strategies is not None:
            found["strategies"] = [s if isinstance(s, str) else s.name for s in self.strategies]
        if isinstance(self.compression, tuple):
            found["compression"] = ",".join(self.compression)
        if self.rates is not None:
            found["rates"] = self.rates.name if isinstance(self.rates, Rates) else str(self.rates)
        options = self.training_options()
        for name in ("shard_weights", "shard_optimizer"):
            value = getattr(options, name)
            found[name] = None if value is None else list(value)
        found["mesh"] = None if self.mesh is None else str(self.mesh)
        found["lenses"] = None if self.lenses is None else list(self.lenses)
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], context: str) -> "CompareRequest":
        """Read what `to_dict` wrote; fields that older versions lacked keep their defaults.

        Args:
          data: the request in a report.json.
          context: name of the file, for errors.

        Raises:
          ValueError: a field that this version does not know.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(
                f"{context}: field {unknown[0]!r} of 'request' is not known here. Give a report of "
                "this version of Parallax, or an older one."
            )
        data = dict(data)
        if data.get("remat") == "microbatch":  # until gradients were accumulated
            if data.get("phase") == "train":
                raise ValueError(
                    f"{context}: remat 'microbatch' of 'request': {REPLACED_REMAT['microbatch']}. "
                    "Give the flags anew."
                )
            del data["remat"]
        return cls(**data)

    def replace(self, **changes: Any) -> "CompareRequest":
        """Return a copy with some fields changed."""
        return replace(self, **changes)
