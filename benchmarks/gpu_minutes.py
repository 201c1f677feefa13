"""Run in a quarter of an hour what only a GPU can show, the most needed first.

  python benchmarks/gpu_minutes.py --out=FOLDER             400 s: right, then time and decoding
  python benchmarks/gpu_minutes.py --out=FOLDER --part=2    240 s: backward, MLP, each launch's time
  python benchmarks/gpu_minutes.py --out=FOLDER --dry_run   on a CPU, with a made-up clock

Needs one Hopper GPU on which nothing else runs, and JAX for CUDA; installs nothing, and runs in a
clone with PYTHONPATH at its root. Every group of items is a process that is killed when its time is
up, and every item leaves a line as soon as it ends, so that an interruption costs one item.
Result: FOLDER/part-1.jsonl (or 2), which goes to kernels/record/GPU-DATE.jsonl (its README.md has
the schema), and FOLDER/log.txt.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parallax.studies.kernels.gpu_minutes.plan import PARTS, Group
from parallax.studies.kernels.gpu_minutes.running import GROUP, Start, run_part, start_group


class MadeUpClock:
    """A clock that each group advances by the whole time that it may take."""

    def __init__(self, start: Start):
        self._now, self._start = 0.0, start

    def __call__(self) -> float:
        return self._now

    def start(self, group: Group, limit_s: float) -> int:
        self._now += limit_s
        return self._start(group, limit_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record and the log")
    parser.add_argument("--part", type=int, choices=PARTS, default=1)
    parser.add_argument("--dry_run", action="store_true", help="tiny cases on a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out.resolve() / f"part-{options.part}.jsonl"
    if record.exists():
        parser.error(f"{record} is there already: give another folder")
    start, clock = start_group(GROUP, record, rehearse=options.dry_run), time.monotonic
    if options.dry_run:
        clock = MadeUpClock(start)
        start = clock.start
    run_part(PARTS[options.part], record, start, clock=clock)
    print(f"written: {record}")


if __name__ == "__main__":
    main()
