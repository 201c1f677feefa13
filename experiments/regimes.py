"""Map where layer-wise deployment beats tensor x pipeline and data parallelism, and where not.

  parallax regimes
  parallax regimes --batches=1,16,256 --widths=1024,8192
  parallax regimes --clusters=h100_nvl16 --stored=float16,int8 --seq_len=8192
  parallax regimes --full --out=DIR
  parallax regimes --explore

A point of the grid is a phase (prefill, decode), a batch, a width, a depth, an attention (MHA,
GQA), a weight format and an interconnect. At each point the analytical model estimates layer-wise,
tensor x pipeline and data parallelism for the same model in the same format, each with its best
number of microbatches. Packed weights are estimated twice: as XLA unpacks them, and as a kernel
would (assumed). The default grid has one interconnect and two formats; --full has two and five.

With --explore another study: one page, explorer.html, where length, batch, devices, network, width,
heads and experts are moved by hand, and every strategy's time, memory and reasons follow at once.
The analytical model is tabulated (about a minute on two cores), and interpolated in the page.

Hardware: any laptop, no GPU; nothing is compiled. About half a minute; --full minutes.
Result: two tables and sentences that say what they show; with --out=DIR, regimes.html with maps,
.json, .md and .svg. docs/generated/regimes.md is the full study.
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
from parallax.studies.regimes import explorer
from parallax.studies.regimes.layerwise import study
from parallax.studies.regimes.page import RegimesReport
from parallax.studies.regimes.places import Grid

WIDTH = 120
_OF_THE_GRID = ("clusters", "batches", "widths", "depths", "stored", "seq_len", "rates", "full")
QUICK = Grid(clusters=("h100_2x8",), stored=("float16", "int8, MLP int8+2:4"))


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    clusters: tuple[str, ...] | None = option(
        None,
        "Interconnects, separated by commas: `parallax list clusters`. Unset: h100_2x8.",
        "list",
    )
    batches: tuple[int, ...] | None = option(
        None, "Numbers of sequences, separated by commas. Unset: 1,4,16,64,256,1024.", "whole list"
    )
    widths: tuple[int, ...] | None = option(
        None,
        "Widths of the model, multiples of 1024, separated by commas. Unset: 1024,2048,4096,8192.",
        "whole list",
    )
    depths: tuple[int, ...] | None = option(
        None, "Numbers of layers, separated by commas. Unset: 16,64.", "whole list"
    )
    stored: tuple[str, ...] | None = option(
        None,
        "Weight formats, separated by commas: float16, int8, int8/int8+2:4 (attention and MLP), "
        "int4, int4+2:4. Unset: float16, int8/int8+2:4.",
        "list",
    )
    seq_len: int = shared.seq_len(2048)
    rates: str | None = shared.rates()
    full: bool = option(
        False,
        "Takes both interconnects and all formats where these flags are unset: minutes.",
        "switch",
    )
    explore: bool = option(
        False, "Writes explorer.html instead: one page to move a model and its hardware.", "switch"
    )
    out: str = shared.out("Folder for regimes.json, .md, .html and two plots as .svg.")

    def unused(self) -> dict[str, str]:
        """Return what --explore leaves unused; --full where interconnects and formats are given."""
        if self.explore:
            return dict.fromkeys(_OF_THE_GRID, "--explore has a grid of its own")
        if self.clusters is None or self.stored is None:
            return {}
        return {"full": "clusters and stored are given, and it sets nothing else"}


def main(flags: Flags) -> int:
    """Estimate the grid that the flags ask for."""
    check_writable(flags.out)
    if flags.explore:
        with ProgressLines() as progress:
            written, off = explorer.save(flags.out, on_progress=progress)
        print(off)
        print(f"\nwritten: {written[0]}")
        return 0
    grid = _grid(flags)
    with ProgressLines() as progress:
        places = study(grid, progress, rates=flags.rates)
    made = {"date": datetime.date.today().isoformat(), "command": _command(flags)}
    report = RegimesReport(grid, places, made)
    try:
        written = report.save(flags.out)
    finally:  # what was found is shown on a full disk too
        show(report.table(), WIDTH)
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _grid(flags: Flags) -> Grid:
    start = Grid() if flags.full else QUICK
    names = ("clusters", "batches", "widths", "depths", "stored")
    given = {name: value for name in names if (value := getattr(flags, name)) is not None}
    if flags.stored is not None:  # `attention/MLP` names two formats
        given["stored"] = tuple(name.replace("/", ", MLP ") for name in flags.stored)
    return start.replace(**given, seq_len=flags.seq_len)


def _command(flags: Flags) -> str:
    """Return the command as typed, without the folder of results."""
    shown = []
    for one in described(Flags):
        value = getattr(flags, one.flag)
        if one.flag in flags.given - {"out"} and value is not False:
            shown.append(f"--{one.flag}" if value is True else f"--{one.flag}={_text(value)}")
    return " ".join(("parallax regimes", *shown))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
