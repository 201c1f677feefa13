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


@dataclass(frozen=True)
class PlanRequest(Request):
    """The arguments of `px.plan`, documented there; every entry of `compressions` is tried."""

    model: str | Path | ModelConfig = shared.model(
        "Give a paper's name, or a folder with config.json."
    )
    batch: int = option(
        None, "Prompts served together, over all devices.", "whole", unit="sequences", at_least=1,
        missing="Give how many prompts are served together.",
    )  # fmt: skip
    prompt_len: int = option(
        None, "Tokens per prompt.", "whole", unit="tokens", at_least=1,
        missing="Give the tokens per prompt.",
    )  # fmt: skip
    output_len: int = option(
        128, "New tokens per prompt; 1 plans a prefill alone.", "whole", unit="tokens",
        at_least=1,
    )  # fmt: skip
    cluster: str | Cluster = option(
        "h100_2x8", "Cluster to plan for: `parallax list clusters`, or <gpu>_<nodes>x8."
    )
    objective: Objective = option(
        "tps",
        "What is best: the most output tokens per second over the whole batch (tps), the least "
        "time per output token (tpot), or the least energy per output token (energy).",
        "choice",
        choices=get_args(Objective),
    )
    max_tpot_s: float | None = option(
        None, "Longest time per output token, in seconds; slower candidates are out.", "number",
        unit="s",
    )  # fmt: skip
    compile_top: int = option(
        5, "Number of the best candidates to compile and rank again.", "whole", at_least=0
    )
    dtype: DType | None = shared.dtype()
    compressions: Sequence[str | tuple[str, str] | None] = shared.compressions()
    kernels: str | None = shared.kernels()
    rates: Rates | str | Path | None = shared.rates()
    regimes: bool = option(
        False,
        "Also map which strategy wins, over length and batch, width and devices, experts and skew.",
        "switch",
    )

    def unused(self) -> Mapping[str, str]:
        """Return the limit on the time per output token where only a prefill is planned."""
        if self.output_len != 1:
            return {}
        return {
            "max_tpot_s": "output_len is 1, a prefill alone, which has no time per output token"
        }
