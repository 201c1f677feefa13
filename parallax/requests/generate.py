"""The request for continuing prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallax.meshes.mesh import MeshSpec
from parallax.models.config import DType, ModelConfig
from parallax.requests import shared
from parallax.requests.option import Request, option
from parallax.strategy import Strategy


@dataclass(frozen=True)
class GenerateRequest(Request):
    """The arguments of `px.generate`, documented there."""

    model: str | Path | ModelConfig = shared.model("Give a folder, or a paper's name with --small.")
    strategy: str | Strategy | None = shared.strategy()
    mesh: str | MeshSpec | None = shared.mesh("devices")
    prompts: Sequence[str] = option(
        (), "A text to continue; repeat the flag for a batch of any lengths.", "repeated",
        flag="prompt",
    )  # fmt: skip
    max_new_tokens: int = option(
        64, "Most tokens to generate per prompt.", "whole", unit="tokens", at_least=1
    )
    temperature: float = option(
        0.0, "Logits are divided by it before a token is sampled; 0 is greedy decoding.", "number"
    )
    top_k: int | None = option(None, "Sample among this many of the most likely tokens.", "whole")
    top_p: float | None = option(
        None, "Sample among the most likely tokens that together reach this probability.", "number"
    )
    seed: int = option(0, "Seed of the sampling: equal seeds, equal results.", "whole")
    stop_tokens: Sequence[int] | None = option(
        None, "Token ids that end a text, separated by commas. Unset: the tokenizer's own.",
        "whole list",
    )  # fmt: skip
    cache_len: int | None = option(
        None, "Most tokens per sequence, prompt and new. Unset: as many as needed.", "whole",
        unit="tokens",
    )  # fmt: skip
    dtype: DType | None = shared.dtype()
    compression: str | tuple[str, str] | None = shared.compression()
    small: bool = shared.small()

    def unused(self) -> Mapping[str, str]:
        """Return the sampling fields where decoding is greedy, each with the reason."""
        why = "at temperature 0 nothing is drawn"
        return dict.fromkeys(("top_k", "top_p", "seed"), why) if not self.temperature else {}
