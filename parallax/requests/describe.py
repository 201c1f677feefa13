"""The request for the time and memory of a step as other software runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from parallax.cost import Rates
from parallax.meshes.cluster import Cluster
from parallax.models.config import DType, ModelConfig
from parallax.requests import shared
from parallax.requests.option import Request, option
from parallax.strategy import Strategy

DescribedPhase = Literal["train", "serve"]
Recompute = Literal["none", "selective", "layer"]


@dataclass(frozen=True)
class DescribeRequest(Request):
    """The arguments of `px.describe`, documented there."""

    model: str | Path | ModelConfig = shared.model(
        "Give a paper's name, or a folder with config.json."
    )
    split: str | Strategy = option(
        "data=1",
        "Degrees as data=2,tensor=4,pipeline=2,context=1,expert=1; all but expert multiply to the "
        "cluster's GPUs. In serving tensor and pipeline, over the GPUs of one copy.",
    )
    implementation: str | None = option(
        None,
        "The software described: `parallax list implementations`. Unset: megatron, or vllm in "
        "serving.",
    )
    phase: DescribedPhase = option(
        "train", "A training step, or serving equal requests.", "choice",
        choices=get_args(DescribedPhase),
    )  # fmt: skip
    batch: int = option(
        None, "Sequences per training step over all devices, or requests in flight.", "whole",
        unit="sequences", at_least=1,
        missing="Give the sequences of a training step, or the requests in flight.",
    )  # fmt: skip
    seq_len: int | None = option(
        None, "Tokens per sequence, in training.", "whole", unit="tokens", at_least=1
    )
    microbatches: int = option(
        1, "Microbatches per step that each replica splits its sequences into.", "whole", at_least=1
    )
    zero: int = option(
        0, "What data-parallel ranks shard: 0 nothing, 1 optimizer state, 2 gradients, 3 weights.",
        "whole", at_least=0,
    )  # fmt: skip
    recompute: Recompute = option(
        "none", "What the backward pass computes again: nothing, attention's scores, or layers.",
        "choice", choices=get_args(Recompute),
    )  # fmt: skip
    prompt_len: int | None = option(
        None, "Tokens per prompt, in serving.", "whole", unit="tokens", at_least=1
    )
    output_len: int = option(
        128, "New tokens per prompt, in serving.", "whole", unit="tokens", at_least=1
    )
    cluster: str | Cluster = option(
        "h100_2x8", "Cluster: `parallax list clusters`, or <gpu>_<nodes>x8."
    )
    network: str | None = shared.network()
    dtype: DType | None = shared.dtype()
    rates: Rates | str | Path | None = shared.rates()

    def unused(self) -> Mapping[str, str]:
        """Return the fields of the phase that is not asked for."""
        if self.phase == "train":
            return dict.fromkeys(("prompt_len", "output_len"), "the phase is train")
        return dict.fromkeys(("seq_len", "microbatches", "zero", "recompute"), "the phase is serve")
