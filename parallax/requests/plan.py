"""What a search for the best strategy is asked for."""

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
    """The arguments of `px.plan`, which documents them; `compressions` are all that are tried."""

    model: str | Path | ModelConfig = shared.model(
        "Give a paper's name, or a folder with config.json."
    )
    batch: int = option(
        None, "Prompts over all devices, served together.", "whole", unit="sequences", at_least=1,
        missing="Give how many prompts are served together.",
    )  # fmt: skip
    prompt_len: int = option(
        None, "Tokens of a prompt.", "whole", unit="tokens", at_least=1,
        missing="Give the tokens of a prompt.",
    )  # fmt: skip
    output_len: int = option(
        128, "New tokens for each prompt; 1 plans a prefill alone.", "whole", unit="tokens",
        at_least=1,
    )  # fmt: skip
    cluster: str | Cluster = option(
        "h100_2x8", "What to plan for: `parallax list clusters`, or <gpu>_<nodes>x8."
    )
    objective: Objective = option(
        "tps",
        "What is best: most output tokens a second over the whole batch, the least time per output "
        "token, or the least energy per output token.",
        "choice",
        choices=get_args(Objective),
    )
    max_tpot_s: float | None = option(
        None, "Longest time per output token, seconds; slower candidates are out.", "number",
        unit="s",
    )  # fmt: skip
    compile_top: int = option(
        5, "So many of the best candidates are compiled and ranked again.", "whole", at_least=0
    )
    dtype: DType | None = shared.dtype()
    compressions: Sequence[str | tuple[str, str] | None] = shared.compressions()
    kernels: str | None = shared.kernels()
    rates: Rates | str | Path | None = shared.rates()
    regimes: bool = option(
        False,
        "Also maps of which strategy wins over length and batch, width and devices, experts and "
        "skew.",
        "switch",
    )

    def unused(self) -> Mapping[str, str]:
        """A limit on the time per output token, where a prefill alone is planned."""
        if self.output_len != 1:
            return {}
        return {
            "max_tpot_s": "output_len is 1, a prefill alone, which has no time per output token"
        }
