"""Inspect any compiled program: what it sends, what runs, how long it should take.

  parallax inspect FILE.hlo
  parallax inspect FILE.hlo --cluster=h200_2x8 --mesh=data=2,tensor=8
  parallax inspect FILE.hlo --trips=expert_tiles=10

FILE is the text of a scheduled CUDA module: `compiled.as_text()` in JAX, or the
*after_optimizations.txt of XLA_FLAGS=--xla_dump_to=DIR. Not only ours.

Hardware: any; nothing runs. Result: collectives, the most expensive kernels and the modelled time,
on one page; with --json=FILE all of it. A form that is not understood is refused, never guessed.
Exit status: 0 ok; 2 bad input.
"""

import json
import sys
from pathlib import Path

from rich.console import Console

from parallax.experiments import flags
from parallax.experiments.launch import check_file
from parallax.inspecting import inspect_text

WIDTH = 110
ARGUMENT = flags.HLO
FLAGS = (flags.HLO, flags.CLUSTER, flags.MESH, flags.TRIPS, flags.RATES, flags.JSON)


def main() -> int:
    """Inspects what the flags name."""
    if flags.HLO.value is None:
        raise ValueError("no file. Write parallax inspect FILE.hlo.")
    if flags.JSON.value is not None:
        check_file(flags.JSON.value)
    try:
        text = Path(flags.HLO.value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"{flags.HLO.value}: {why}. Give the text of a compiled module.") from None
    found = inspect_text(
        text,
        cluster=flags.CLUSTER.value,
        mesh=flags.MESH.value,
        trips=_trips(flags.TRIPS.value or ()),
        rates=flags.RATES.value,
    )
    Console(width=None if sys.stdout.isatty() else WIDTH).print(found.table())
    if flags.JSON.value is not None:
        record = json.dumps(found.to_dict(), indent=1) + "\n"
        Path(flags.JSON.value).write_text(record, encoding="utf-8")
    return 0


def _trips(pairs) -> dict[str, float]:
    trips = {}
    for pair in pairs:
        scope, equals, count = pair.partition("=")
        try:
            trips[scope] = float(count)
        except ValueError:
            equals = ""
        if not (scope and equals):
            raise ValueError(f"--trips: expected scope=count, got {pair!r}.")
    return trips
