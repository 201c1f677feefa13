"""Which of two strategies is faster on the devices here, by paired runs.

  parallax pairs --paper=cache_layerwise
  parallax pairs --model=ring_sp --strategies=ring_sequence,double_ring --batch=64 --pairs=50
  parallax pairs --paper=compressed_layerwise --json=pairs.json

Both run once in each pair, in an order that is drawn, half of the pairs each way: what drifts
(clocks, temperature, neighbours) meets both alike. The ratio of times is the geometric mean over
pairs, with a 95 % interval (Student's t of the logs). A paper's baseline and own system are
compared unless --strategies names two.

Hardware: any; on a machine without enough GPUs the small model runs on virtual CPU devices, and
the ratio says nothing about GPUs.
Result: both step times and their ratio; every pair in --json=FILE. Seconds to minutes.
Exit status: 0 ok, decided or not; 2 bad input.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines, check_file
from parallax.experiments.output import show
from parallax.requests import shared
from parallax.requests.option import nested
from parallax.requests.pairs import PairsRequest
from parallax.studies.pairs.pairs import run_pairs

WIDTH = 100


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    request: PairsRequest = nested(PairsRequest)
    json: str | None = shared.json_file()


def main(flags: Flags) -> int:
    """Runs the pairs that the flags ask for."""
    check_file(flags.json)
    with ProgressLines() as progress:
        found = run_pairs(flags.request, on_progress=progress)
    if flags.json is not None:
        record = json.dumps(found.to_dict(), indent=1) + "\n"
        Path(flags.json).write_text(record, encoding="utf-8")
    show(found.table(), WIDTH)
    return 0
