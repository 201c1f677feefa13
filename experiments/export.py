"""Export the weights of a training run to a folder in Hugging Face's layout.

  parallax export --model=runs/one --out=FOLDER
  parallax export --model=runs/one --out=FOLDER --family=mistral

The newest checkpoint is written in the model's own dtype, with the tokenizer of the weights that
the run started from. `parallax generate --model=FOLDER`, transformers, vLLM and others load it.

Hardware: one device (the CPU will do) that can hold the weights.
Result: FOLDER with config.json, *.safetensors and the tokenizer's files.
Exit status: 0 ok; 2 bad input.
"""

from dataclasses import dataclass
from pathlib import Path

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.requests import shared
from parallax.requests.option import option


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    model: str | None = option(
        None, "The folder of a training run.", missing="Give the folder of a training run."
    )
    family: str | None = option(
        None,
        "model_type to write (`parallax list families`). Unset: the first that computes the same.",
    )
    out: str = shared.out("Folder to create; it must not exist yet.")


def main(flags: Flags) -> int:
    """Export the run that the flags name."""
    from parallax.engine.export import export

    with ProgressLines() as progress:
        folder = export(flags.model or "", flags.out, family=flags.family, on_progress=progress)
    print(f"written: {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}")
    return 0


def kept(flags: Flags) -> str:
    """Return what an interrupted run leaves: the folder appears only once it is complete."""
    return f"{Path(flags.out)} was not made"
