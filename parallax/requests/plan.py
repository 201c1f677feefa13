"""The request for a search for the best strategy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from parallax.cost import Rates
from parallax.meshes.cluster import Cluster
from parallax.models.config import DType, ModelConfig
from parallax.requests import shared
from parallax.requests.option import Request, option

Objective = Literal["tps", "tpot", "energy"]
PlanPhase = Literal["serve", "train"]
# The best candidates compiled where nothing else is asked for. A training step takes longer.
COMPILED: Mapping[PlanPhase, int] = {"serve": 3, "train": 1}


@dataclass(frozen=True)
class PlanRequest(Request):
    """The arguments of `px.plan`, documented there; every entry of `compressions` is tried."""

    model: str | Path | ModelConfig = shared.model(
        "Give a paper's name, or a folder with config.json."
    )
    phase: PlanPhase = option(
        "serve",
        "What is planned: serving prompts (serve), or training (train): then also how weights and "
        "optimizer state are sharded, the pipeline's schedule, microbatches and what is "
        "recomputed.",
        "choice",
        choices=get_args(PlanPhase),
    )
    batch: int = option(
        None, "Prompts served together, or sequences per training step, over all devices.",
        "whole", unit="sequences", at_least=1,
        missing="Give how many prompts are served together, or sequences are in a training step.",
    )  # fmt: skip
    prompt_len: int | None = option(
        None, "Tokens per prompt, in serving.", "whole", unit="tokens", at_least=1
    )
    output_len: int = option(
        128, "New tokens per prompt; 1 plans a prefill alone.", "whole", unit="tokens",
        at_least=1,
    )  # fmt: skip
    seq_len: int | None = option(
        None, "Tokens per sequence, in training.", "whole", unit="tokens", at_least=1
    )
    max_memory: str | float | None = option(
        None,
        "Memory per GPU that a training step may need, such as 60GB. Unset: what the GPU has.",
    )
    cluster: str | Cluster = option(
        "h100_2x8", "Cluster to plan for: `parallax list clusters`, or <gpu>_<nodes>x8."
    )
    objective: Objective = option(
        "tps",
        "What is best: the most tokens per second over the whole batch, output tokens in serving "
        "(tps), the least time per output token (tpot), or the least energy per token (energy).",
        "choice",
        choices=get_args(Objective),
    )
    max_tpot_s: float | None = option(
        None, "Longest time per output token, in seconds; slower candidates are out.", "number",
        unit="s",
    )  # fmt: skip
    compile_top: int | None = option(
        None,
        "Number of the best candidates to compile and rank again. Unset: 3, in training 1.",
        "whole",
        at_least=0,
    )
    dtype: DType | None = shared.dtype()
    compressions: Sequence[str | tuple[str, str] | None] = shared.compressions()
    kernels: str | None = shared.kernels()
    network: str | None = shared.network()
    rates: Rates | str | Path | None = shared.rates()
    regimes: bool = option(
        False,
        "Also map which strategy wins, over length and batch, width and devices, experts and skew.",
        "switch",
    )

    def unused(self) -> Mapping[str, str]:
        """Return what the phase makes irrelevant, and the limit of a prefill alone."""
        if self.phase == "train":
            return dict.fromkeys(_OF_SERVING, "the phase is train, which serves no prompts")
        unused: dict[str, str] = {}
        if self.phase == "serve":
            unused |= dict.fromkeys(_OF_TRAINING, "the phase is serve, which trains on nothing")
        if self.output_len == 1:
            unused["max_tpot_s"] = (
                "output_len is 1, a prefill alone, which has no time per output token"
            )
        return unused

    @property
    def compiled(self) -> int:
        """The number of candidates to compile."""
        return COMPILED[self.phase] if self.compile_top is None else self.compile_top


_OF_SERVING: tuple[str, ...] = (
    "prompt_len",
    "output_len",
    "max_tpot_s",
    "compressions",
    "compression",
    "regimes",
)
_OF_TRAINING: tuple[str, ...] = ("seq_len", "max_memory")
