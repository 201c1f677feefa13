"""Compress a model's weights by INT8, grouped INT4 and N:M sparsity, to run under any strategy.

  parallax compress --model=FOLDER --compression=int8 --out=FOLDER-int8
  parallax compress --model=FOLDER --compression=int8,int8+2:4 --out=small
  parallax compress --model=FOLDER --compression=int8 --layer_formats=0-3=int8,int8+2:4 --out=mix
  parallax compress --model=FOLDER --budget=0.3x --out=mildest
  parallax generate --model=small --strategy=tensor_pipeline --virtual --prompt="Hello"

A format is DTYPE[/GROUP][+N:M]. int8 has one scale per output channel (W8A16); w8a8 quantizes
activations too, with one scale per token; int4 has one scale per 128 inputs, int4/64 one per 64.
+2:4 keeps the two largest of every four weights. --compression takes one format, or those of
attention and MLP joined by a comma; tables, norms, biases and routers stay as they are.
--layer_formats overrides the formats of some layers. --budget chooses a mixed-precision assignment:
the formats with the least predicted damage whose matrices take at most that many bytes, such as
40MB, or that share of the dense bytes, such as 0.3x. The damage is a proxy, the sum of squared
relative errors of the weights; no text is run. Only parallax deploy runs a folder whose layers have
different formats.

Hardware: one device (the CPU will do) that can hold the dense and the compressed weights.
Result: a folder of safetensors, one file per layer, with the tokenizer's files; a table of bytes
and of the weights' errors, and one of each block's output error on random inputs, both measured.
To measure what a format costs a model, see parallax compress_quality.
Exit status: 0 ok; 2 bad input.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from parallax.engine.compressed import CompressedFolder
from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import show
from parallax.report.words import in_bytes
from parallax.requests import shared
from parallax.requests.option import option

WIDTH = 100


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    model: str | None = option(
        None,
        "A folder in Hugging Face's layout, or of a training run.",
        missing="Give a folder with dense weights.",
    )
    compression: str | None = shared.compression()
    layer_formats: tuple[str, ...] = shared.layer_formats()
    budget: str | None = option(
        None,
        "In place of formats: bytes of all layers' matrices such as 40MB, or a share of their "
        "dense bytes such as 0.3x. Each layer gets formats so that a proxy of the damage is least: "
        "the sum of squared relative errors of the weights.",
    )
    out: str = shared.out("Folder to create; it must not exist yet.")


def main(flags: Flags) -> int:
    """Compress the model that the flags name."""
    budget = flags.budget
    if not flags.given & {"compression", "layer_formats", "budget"}:
        raise ValueError(
            "--compression, --layer_formats or --budget is needed. See parallax compress --help."
        )
    from parallax.engine.compress import compress

    with ProgressLines() as progress:
        done = compress(
            flags.model or "", flags.compression, flags.out, layer_formats=flags.layer_formats,
            budget=budget, on_progress=progress,
        )  # fmt: skip
    _show(done, budget)
    return 0


def kept(flags: Flags) -> str:
    """Return what an interrupted run leaves: the folder appears only once it is complete."""
    out = Path(flags.out)
    partial = out.with_name(f".{out.name}.partial")
    rest = f"; {partial} is a partial one, which the next run replaces" if partial.is_dir() else ""
    return f"{out} was not made{rest}"


def _show(done: CompressedFolder, budget: str | None) -> None:
    show(_matrices(done), WIDTH)
    print()
    show(_layers(done), WIDTH)
    print(
        "\nweights' error: relative L2 of the worst layer's weights, measured\nblock's error: "
        "relative L2 of the block's output on random inputs of unit RMS, measured"
    )
    for line in done.warnings:
        print(line)
    if budget is not None:
        total = sum(layer.damage or 0.0 for layer in done.layers)
        print(
            f"predicted damage: {total:.3g} in total, the sum of squared relative errors of "
            "weights: a proxy that runs no text"
        )
    if done.config.compression is None:
        print("layers have different formats: only parallax deploy runs this folder")
    print(f"written: {done.folder}")


def _matrices(done) -> Table:
    heads = ("matrix", "format", "layers", "dense", "stored", "share", "weights' error")
    table = _table(heads, 3)
    for m in done.matrices:
        share = f"{m.stored_bytes / m.dense_bytes:.1%}"
        table.add_row(
            m.name, m.form, _numbers(m.layers), in_bytes(m.dense_bytes), in_bytes(m.stored_bytes),
            share, f"{m.error:.2e}",
        )  # fmt: skip
    rest = in_bytes(done.rest_bytes)
    table.add_row("the rest", done.config.dtype, "", rest, rest)
    share = f"{done.stored_bytes / done.dense_bytes:.1%}"
    table.add_row("in all", "", "", in_bytes(done.dense_bytes), in_bytes(done.stored_bytes), share)
    return table


def _layers(done) -> Table:
    chosen = done.layers[0].damage is not None
    heads = ("layer", "attention", "MLP", "matrices", "block's error")
    table = _table((*heads, *(("predicted damage",) if chosen else ())), 3)
    for number, layer in enumerate(done.layers):
        damage = (f"{layer.damage:.2e}",) if chosen else ()
        size, error = in_bytes(layer.stored_bytes), f"{layer.block_error:.2e}"
        table.add_row(str(number), *layer.formats, size, error, *damage)
    return table


def _table(heads: tuple[str, ...], words: int) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < words else "right")
    return table


def _numbers(layers: tuple[int, ...]) -> str:
    """Return layer numbers as ranges: 0, 1, 2, 3, 5 is 0-3,5."""
    runs: list[list[int]] = []
    for n in layers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
