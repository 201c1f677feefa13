"""Compress a model: INT8, grouped INT4, N:M sparsity; stored small, run under any strategy.

  parallax compress --model=FOLDER --compression=int8 --out=FOLDER-int8
  parallax compress --model=FOLDER --compression=int8,int8+2:4 --out=small
  parallax generate --model=small --strategy=tensor_pipeline --virtual --prompt="Hello"

Formats: DTYPE[/GROUP][+N:M]. int8: one scale an output channel (W8A16). w8a8: activations too, one
scale a token. int4: a scale every 128 inputs, int4/64 every 64. +2:4 keeps the two largest of four.
One format, or attention's and the MLP's joined by a comma; tables, norms, biases and routers stay.

Hardware: one device (the CPU will do) that holds the dense and the compressed weights.
Result: a folder of safetensors, a file a layer, beside the tokenizer's; a table of bytes and of the
weights' own error, measured. What it costs the model: parallax compress_quality.
Exit status: 0 ok; 2 bad input.
"""

import sys

from rich.console import Console
from rich.table import Table

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines

WIDTH = 100
FLAGS = (flags.MODEL, flags.COMPRESSION, flags.OUT)


def main() -> int:
    """Compresses what the flags ask for."""
    formats = flags.compression()
    if flags.MODEL.value is None or formats is None:
        raise ValueError("--model and --compression are needed. See parallax compress --help.")
    from parallax.engine.compress import compress

    with ProgressLines() as progress:
        done = compress(flags.MODEL.value, formats, flags.OUT.value, on_progress=progress)
    table = Table(box=None, pad_edge=False)
    for head in ("matrix", "format", "dense", "stored", "share", "weights' error"):
        table.add_column(head, justify="left" if head in ("matrix", "format") else "right")
    for m in done.matrices:
        share = f"{m.stored_bytes / m.dense_bytes:.1%}"
        table.add_row(
            m.name, m.form, _mb(m.dense_bytes), _mb(m.stored_bytes), share, f"{m.error:.2e}"
        )
    table.add_row("the rest", done.config.dtype, _mb(done.rest_bytes), _mb(done.rest_bytes))
    share = f"{done.stored_bytes / done.dense_bytes:.1%}"
    table.add_row("in all", "", _mb(done.dense_bytes), _mb(done.stored_bytes), share)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    print(f"\nerror: relative L2 of the worst layer's weights, measured\nwritten: {done.folder}")
    return 0


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.2f} MB"
