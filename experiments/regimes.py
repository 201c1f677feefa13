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
docs/generated/regimes.md is the full study.
Exit status: 0 ok; 2 bad input.
"""

import datetime
from dataclasses import dataclass
from typing import Any

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import show
from parallax.report import check_writable
from parallax.requests import shared
from parallax.requests.option import described, option
from parallax.studies.regimes.layerwise import study
from parallax.studies.regimes.page import RegimesReport
from parallax.studies.regimes.places import Grid

WIDTH = 120
QUICK = Grid(clusters=("h100_2x8",), stored=("float16", "int8, MLP int8+2:4"))


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    clusters: tuple[str, ...] | None = option(
        None, "Wirings, by commas: `parallax list clusters`. Unset: h100_2x8.", "list"
    )
    batches: tuple[int, ...] | None = option(
        None, "Sequences, by commas. Unset: 1,4,16,64,256,1024.", "whole list"
    )
    widths: tuple[int, ...] | None = option(
        None,
        "Widths of the model, multiples of 1024, by commas. Unset: 1024,2048,4096,8192.",
        "whole list",
    )
    depths: tuple[int, ...] | None = option(
        None, "Layers of the model, by commas. Unset: 16,64.", "whole list"
    )
    stored: tuple[str, ...] | None = option(
        None,
        "Formats of the weights, by commas: float16, int8, int8/int8+2:4 (of attention and MLP), "
        "int4, int4+2:4. Unset: float16, int8/int8+2:4.",
        "list",
    )
    seq_len: int = shared.seq_len(2048)
    rates: str | None = shared.rates()
    full: bool = option(
        False, "Both wirings and all formats where these flags are unset: minutes.", "switch"
    )
    out: str = shared.out("Folder for regimes.json, .md, .html and two plots as .svg.")

    def unused(self) -> dict[str, str]:
        """All wirings and formats, where both are named."""
        if self.clusters is None or self.stored is None:
            return {}
        return {"full": "clusters and stored are given, and it sets nothing else"}


def main(flags: Flags) -> int:
    """Studies the grid that the flags ask for."""
    check_writable(flags.out)
    grid = _grid(flags)
    with ProgressLines() as progress:
        places = study(grid, progress, rates=flags.rates)
    made = {"date": datetime.date.today().isoformat(), "command": _command(flags)}
    report = RegimesReport(grid, places, made)
    written = report.save(flags.out)
    show(report.table(), WIDTH)
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _grid(flags: Flags) -> Grid:
    start = Grid() if flags.full else QUICK
    names = ("clusters", "batches", "widths", "depths", "stored")
    given = {name: value for name in names if (value := getattr(flags, name)) is not None}
    if flags.stored is not None:  # `attention/MLP` is one name of two formats
        given["stored"] = tuple(name.replace("/", ", MLP ") for name in flags.stored)
    return start.replace(**given, seq_len=flags.seq_len)


def _command(flags: Flags) -> str:
    """As typed, without where results go."""
    shown = []
    for one in described(Flags):
        value = getattr(flags, one.flag)
        if one.flag in flags.given - {"out"} and value is not False:
            shown.append(f"--{one.flag}" if value is True else f"--{one.flag}={_text(value)}")
    return " ".join(("parallax regimes", *shown))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
