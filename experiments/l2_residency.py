"""Measure how much of what one step read is still in the GPU's L2 cache at the next step.

  parallax l2_residency --out=out

Working sets from 1 MB to four times the cache are read cold, a second time and hot. Between two
readings, other bytes are read as keys and values would be, from none to twice the cache. The times
give the share that was still resident. A second table has the time of the cache-tiled MLP kernel by
number of microbatches, with weights that fit the cache and weights that do not.

Hardware: one NVIDIA Hopper GPU on which nothing else runs; minutes.
Result: two tables; out/l2_residency.json and .svg. Commit the JSON file as
benchmarks/GPU/l2_residency-DATE.json and run `python -m parallax.studies.l2_residency.page`.
Exit status: 0 ok; 2 no such GPU, or bad input.
"""

import json
from dataclasses import dataclass

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import show
from parallax.report import check_writable
from parallax.report.files import save_files
from parallax.report.grid import grid_table
from parallax.report.svg import as_file
from parallax.requests import shared
from parallax.studies.l2_residency.page import plot, tables

WIDTH = 110


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    out: str = shared.out("Folder for l2_residency.json and l2_residency.svg.")


def main(flags: Flags) -> int:
    """Measure the GPU at hand."""
    from parallax.studies.kernels.timing import gpu_timer
    from parallax.studies.l2_residency.measuring import gpu_at_hand, measure_residency

    check_writable(flags.out)
    l2_bytes, sequence_timer = gpu_at_hand()
    with ProgressLines() as progress:
        record = measure_residency(
            l2_bytes=l2_bytes, sequence_timer=sequence_timer, timer=gpu_timer(),
            on_progress=progress,
        )  # fmt: skip
    files = {
        "l2_residency.json": json.dumps(record, indent=1) + "\n",
        "l2_residency.svg": as_file(plot(record)),
    }
    written = save_files(flags.out, files)
    for grid in tables(record):
        show(grid_table(grid), WIDTH)
    print(f"written: {', '.join(str(path) for path in written)}")
    return 0
