"""Inspect any compiled program: what it sends, what runs, how long it should take.

  parallax inspect FILE.hlo
  parallax inspect FILE.hlo --cluster=h200_2x8 --mesh=data=2,tensor=8
  parallax inspect FILE.hlo --trips=expert_tiles=10

FILE is the text of a compiled module: `compiled.as_text()` in JAX 0.4 to 0.12, or a file of
XLA_FLAGS=--xla_dump_to=DIR. The program may be anyone's. A module that is not scheduled
(*before_optimizations.txt), or compiled for a CPU or TPU, has its collectives, FLOPs and bytes
counted and no time.

Hardware: any; the program is not run.
Result: collectives, the most expensive kernels and the modelled time, on one page; with --json=FILE
all of it in a file. An instruction that is not understood is refused, never guessed; what a library
does is called unpriced where only its bytes are known, and the time then has no error bar.
Exit status: 0 ok; 2 bad input.
"""

import json
from dataclasses import dataclass

from parallax.commands.inspect import inspect_text
from parallax.experiments.dump import mesh_words, parse_trips, read_dump, trips_option
from parallax.experiments.flags import Command
from parallax.experiments.launch import check_file, save_file
from parallax.experiments.output import show
from parallax.requests import shared
from parallax.requests.option import option

WIDTH = 110


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    hlo: str = option(
        None,
        "Text of a compiled module; also without --hlo=.",
        missing="Write parallax inspect FILE.hlo.",
        positional=True,
    )
    cluster: str | None = shared.cluster("nodes of eight H100", "What the cost is estimated for")
    mesh: str | None = option(None, mesh_words())
    trips: tuple[str, ...] = trips_option()
    network: str | None = shared.network()
    rates: str | None = shared.rates()
    json: str | None = shared.json_file()


def main(flags: Flags) -> int:
    """Inspect the program that the flags name."""
    check_file(flags.json)
    inspection = inspect_text(
        read_dump(flags.hlo),
        cluster=flags.cluster,
        network=flags.network,
        mesh=flags.mesh,
        trips=parse_trips(flags.trips),
        rates=flags.rates,
    )
    if flags.json is not None:
        save_file(flags.json, json.dumps(inspection.to_dict(), indent=1) + "\n")
    show(inspection.table(), WIDTH)
    return 0
