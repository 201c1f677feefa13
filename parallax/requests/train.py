"""What a training run is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parallax.meshes.mesh import MeshSpec
from parallax.models.config import DType, ModelConfig
from parallax.parallel.split import Remat
from parallax.requests import shared
from parallax.requests.option import Request, option
from parallax.strategy import Strategy


@dataclass(frozen=True)
class TrainRequest(Request):
    """The arguments of `px.train`, which documents them, but for the optimizer's."""

    model: str | Path | ModelConfig = shared.model("Give a folder, or a paper's name.")
    small: bool = shared.small()
    data: Sequence[str | Path] = option(
        (),
        "Files to train on, separated by commas: text, .npy (a row of integers) or .bin (uint16) "
        "tokens.",
        "list",
        missing="Give files.",
    )
    workdir: str | Path = option(
        None, "Folder of a training run. One with a checkpoint goes on from it.",
        missing="Give a folder for the run.",
    )  # fmt: skip
    strategy: str | Strategy | None = shared.strategy()
    mesh: str | MeshSpec | None = shared.mesh("devices")
    steps: int = option(
        100, "Training steps in all, those of earlier runs counted.", "whole", unit="steps",
        at_least=1,
    )  # fmt: skip
    batch: int = shared.batch(16)
    seq_len: int = shared.seq_len(256)
    microbatches: int | None = shared.microbatches("the strategy's own, or 1")
    remat: Remat = shared.remat()
    seed: int = shared.seed()
    save_every: int = option(
        100, "Steps between checkpoints; the last step is saved too.", "whole", unit="steps",
        at_least=1,
    )  # fmt: skip
    keep: int = option(3, "Newest checkpoints that stay.", "whole", at_least=1)
    dtype: DType | None = shared.dtype()
    param_dtype: DType = "float32"  # no flag: float64 where the dtype is
