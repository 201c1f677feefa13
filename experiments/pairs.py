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
import sys
from pathlib import Path

from rich.console import Console

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines, check_file
from parallax.pairing import compare_pairs

WIDTH = 100
FLAGS = (
    flags.PAPER, flags.MODEL, flags.STRATEGIES, flags.MESH, flags.BATCH, flags.SEQ_LEN,
    flags.SMALL, flags.DTYPE, flags.CLUSTER, flags.TEXT, flags.PAIRS, flags.SEED, flags.JSON,
)  # fmt: skip


def main() -> int:
    """Runs the pairs that the flags ask for."""
    if flags.JSON.value is not None:
        check_file(flags.JSON.value)
    with ProgressLines() as progress:
        found = compare_pairs(
            flags.PAPER.value,
            model=flags.MODEL.value,
            strategies=flags.STRATEGIES.value,
            mesh=flags.MESH.value,
            batch=flags.BATCH.value,
            seq_len=flags.SEQ_LEN.value,
            small=flags.SMALL.value,
            dtype=flags.DTYPE.value,
            cluster=flags.CLUSTER.value,
            text=flags.TEXT.value,
            pairs=flags.PAIRS.value,
            seed=flags.SEED.value,
            on_progress=progress,
        )
    Console(width=None if sys.stdout.isatty() else WIDTH).print(found.table())
    if flags.JSON.value is not None:
        record = json.dumps(found.to_dict(), indent=1) + "\n"
        Path(flags.JSON.value).write_text(record, encoding="utf-8")
    return 0
