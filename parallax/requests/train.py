"""The request for a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from parallax.meshes.mesh import MeshSpec
from parallax.models.config import DType, ModelConfig
from parallax.parallel.layer_parts import ScheduleName
from parallax.parallel.remat import Remat
from parallax.parallel.sharded_weights import Gather
from parallax.requests import shared
from parallax.requests.option import Request, option
from parallax.strategies import TrainingOptions
from parallax.strategy import Strategy


@dataclass(frozen=True)
class TrainRequest(Request):
    """The arguments of `px.train` but the optimizer's, documented there."""

    model: str | Path | ModelConfig = shared.model("Give a folder, or a paper's name.")
    small: bool = shared.small()
    data: Sequence[str | Path] = option(
        (),
        "Comma-separated files to train on: text, .npy (a row of integers) or .bin (uint16) "
        "tokens.",
        "list",
        missing="Give files.",
    )
    workdir: str | Path = option(
        None, "Folder of the training run. A run with a checkpoint continues from it.",
        missing="Give a folder for the run.",
    )  # fmt: skip
    strategy: str | Strategy | None = shared.strategy()
    mesh: str | MeshSpec | None = shared.mesh("devices")
    shard_weights: str | Sequence[str] | None = shared.shard_weights()
    gather: Gather | None = shared.gather()
    shard_optimizer: str | Sequence[str] | None = shared.shard_optimizer()
    schedule: ScheduleName | None = shared.schedule()
    virtual_stages: int | None = shared.virtual_stages()
    steps: int = option(
        100, "Training steps in all, including those of earlier runs.", "whole", unit="steps",
        at_least=1,
    )  # fmt: skip
    batch: int = shared.batch(16)
    seq_len: int = shared.seq_len(256)
    microbatches: int | None = shared.microbatches("the strategy's own, or 1")
    remat: Remat = shared.remat()
    dtype: DType | None = shared.dtype()
    seed: int = shared.seed()
    save_every: int = option(
        100, "Steps between checkpoints; the last step is saved too.", "whole", unit="steps",
        at_least=1,
    )  # fmt: skip
    keep: int = option(3, "Number of newest checkpoints to keep.", "whole", at_least=1)
    param_dtype: DType = "float32"  # no flag: float64 if the dtype is float64

    def training_options(self) -> TrainingOptions:
        """Return what the request changes in the strategy."""
        return TrainingOptions(
            self.shard_weights, self.gather, self.shard_optimizer, self.schedule,
            self.virtual_stages,
        )  # fmt: skip

    def check(self) -> None:
        """Raise ValueError for a number that is not positive, or an unknown dtype of parameters."""
        for name in ("steps", "batch", "seq_len", "microbatches", "save_every", "keep"):
            value = getattr(self, name)
            if name == "microbatches" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if self.param_dtype not in get_args(DType):
            raise ValueError(
                f"param_dtype must be one of {', '.join(get_args(DType))}; got "
                f"{self.param_dtype!r}."
            )
