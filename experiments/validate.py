"""Hold the predictions against measurements: published ones, or a table of your own.

  parallax validate
  parallax validate --table=steps.csv --out=out
  parallax validate --table=steps.csv --rates=rates.json

Without a table: every published measurement that is shipped, of kernels, collectives, training and
serving steps. What was fitted to them is fitted again without the rows that it is judged by, five
times. With one: the shipped constants, of which none saw your rows. A table is a CSV file, one row
a measured step; docs/validation.md has its columns. `parallax calibrate` measures the constants of
your GPU and links; --rates takes its file.

Hardware: any. Result: errors, bias, coverage of the 80 % bars, order and regret by regime;
validation.json, .md and .html with plots of modelled against measured. Without a table 80 seconds.
Exit status: 0 ok; 2 bad input.
"""

from dataclasses import dataclass

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import show
from parallax.report import check_writable
from parallax.requests import shared
from parallax.requests.option import option

WIDTH = 120


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    table: str | None = option(
        None, "CSV file of measured steps (docs/validation.md). Unset: the published measurements."
    )
    rates: str | None = shared.rates()
    out: str = shared.out("Folder for validation.json, .md and .html, and the plots.")


def main(flags: Flags) -> int:
    """Validate against the table that the flags name."""
    from parallax.studies.validation.validating import validate

    check_writable(flags.out)
    with ProgressLines() as progress:
        found = validate(flags.table, rates=flags.rates, on_progress=progress)
    try:
        written = found.save(flags.out)
    finally:  # what was found is shown on a full disk too
        show(found.table(), WIDTH)
    print(f"\nwritten: {', '.join(str(path) for path in written)}")
    return 0
