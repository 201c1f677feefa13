"""Where layer-wise deployment wins and where not: against TP x PP and against no communication.

  parallax regimes
  parallax regimes --batches=1,16,256 --widths=1024,8192
  parallax regimes --clusters=h100_nvl16 --stored=float16,int8 --seq_len=8192
  parallax regimes --full --out=DIR

A place is a phase (prefill, decode), a batch, a width, a depth, an attention (MHA, GQA), a format
of the weights and a wiring. At each, layer-wise, tensor parallelism x pipeline and data parallelism
run the same model with weights in the same format, each at its best number of microbatches, by
closed form. Packed weights are priced twice: as XLA unpacks them, and as a kernel would (assumed).
Unset: one wiring and two formats; --full takes both wirings and five formats.

Hardware: any laptop, no GPU; nothing is compiled. About half a minute; --full minutes.
Result: two tables, sentences that say what they show, DIR/regimes.html with maps, .json, .md, .svg.
docs/regimes.md is the full study.
Exit status: 0 ok; 2 bad input.
"""

import datetime
import sys
from typing import Any

from rich.console import Console

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines
from parallax.report import check_writable
from parallax.report.regimes_page import RegimesReport
from parallax.search.layerwise_regimes import study
from parallax.search.places import Grid

WIDTH = 120
QUICK = Grid(clusters=("h100_2x8",), stored=("float16", "int8, MLP int8+2:4"))
FLAGS = (
    flags.CLUSTERS, flags.BATCHES, flags.WIDTHS, flags.DEPTHS, flags.STORED, flags.SEQ_LEN,
    flags.FULL, flags.OUT,
)  # fmt: skip


def main() -> int:
    """Studies the grid that the flags ask for."""
    check_writable(flags.OUT.value)
    grid = _grid()
    with ProgressLines() as progress:
        places = study(grid, progress)
    made = {"date": datetime.date.today().isoformat(), "command": _command()}
    report = RegimesReport(grid, places, made)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(report.table())
    written = report.save(flags.OUT.value)
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _grid() -> Grid:
    start = Grid() if flags.FULL.value else QUICK
    asked: dict[str, Any] = {
        "clusters": flags.CLUSTERS.value, "batches": _numbers(flags.BATCHES),
        "widths": _numbers(flags.WIDTHS), "depths": _numbers(flags.DEPTHS),
        "stored": _stored(flags.STORED.value), "seq_len": flags.SEQ_LEN.value,
    }  # fmt: skip
    given = {k: v if k == "seq_len" else tuple(v) for k, v in asked.items() if v is not None}
    return start.replace(**given)


def _stored(values: list[str] | None) -> list[str] | None:
    """`attention/MLP` is one name of two formats."""
    return None if values is None else [v.replace("/", ", MLP ") for v in values]


def _numbers(holder: Any) -> list[int] | None:
    if holder.value is None:
        return None
    try:
        return [int(v) for v in holder.value]
    except ValueError:
        said = ",".join(holder.value)
        raise ValueError(f"--{holder.name}={said}: expected numbers, by commas.") from None


def _command() -> str:
    shown = [f"--{f.name}" if f.value is True else f"--{f.name}={_text(f.value)}"
             for f in FLAGS if f.name != "out" and f.value not in (None, False)]  # fmt: skip
    return " ".join(("parallax regimes", *shown))


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
