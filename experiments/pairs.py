"""Decide which of two strategies is faster on the devices at hand, by paired runs.

  parallax pairs --paper=cache_layerwise
  parallax pairs --model=ring_sp --strategies=ring_sequence,double_ring --batch=64 --pairs=50
  parallax pairs --paper=compressed_layerwise --json=pairs.json

Each pair runs both strategies once, in random order, half of the pairs each way, so that drift
(clocks, temperature, other load) affects both alike. The ratio of times is the geometric mean over
pairs, with a 95 % confidence interval (Student's t of the logs). Unless --strategies names two, a
paper's own system is compared with its baseline. With --distributed both run on the devices of all
processes, and a run lasts until the slowest process is done.

Hardware: any; on a machine without enough GPUs the small model runs on virtual CPU devices, and
the ratio says nothing about GPUs. Seconds to minutes.
Result: both step times and their ratio; with --json=FILE every pair.
Exit status: 0 ok, decided or not; 2 bad input; 3 with --distributed: another process was
lost, or they did not meet.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines, check_file
from parallax.experiments.output import on_first, show
from parallax.requests import shared
from parallax.requests.option import nested
from parallax.requests.pairs import PairsRequest
from parallax.requests.processes import ProcessesRequest
from parallax.studies.pairs.pairs import run_pairs

WIDTH = 100


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    request: PairsRequest = nested(PairsRequest)
    json: str | None = shared.json_file()
    processes: ProcessesRequest = nested(ProcessesRequest)


def main(flags: Flags) -> int:
    """Run the pairs that the flags ask for."""
    on_first("the file of results", lambda: check_file(flags.json))
    with ProgressLines() as progress:
        measured = run_pairs(flags.request, on_progress=progress)
    if flags.json is not None:
        file, record = Path(flags.json), json.dumps(measured.to_dict(), indent=1) + "\n"
        on_first("the file of results", lambda: file.write_text(record, encoding="utf-8"))
    show(measured.table(), WIDTH)
    return 0
