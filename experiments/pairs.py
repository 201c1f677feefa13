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

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines, check_file, save_file
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
    record = json.dumps(measured.to_dict(), indent=1) + "\n"
    try:
        on_first("the file of results", lambda: save_file(flags.json, record))
    finally:  # what was measured is shown on a full disk too
        show(measured.table(), WIDTH)
    return 0
