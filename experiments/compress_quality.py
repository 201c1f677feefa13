"""Measure what quantization and sparsity cost a small model that is trained here.

  parallax compress_quality
  parallax compress_quality --data=FILE,FILE --train_steps=3000
  parallax compress_quality --train_steps=100 --tune_steps=0 --race_steps=0       (a quick look)

Trains a small byte-level model on real text (Python's own language reference, 0.4 MB of English
that ships with it, or FILEs), then stores its matrices as INT8, INT4, 2:4 sparse and combined, as
they are and after a short tuning through the format. Measures the perplexity of held-out text and
a task (which of four continuations is the text's own), with 95 % intervals paired with float16; the
error of every matrix; the steps to a common loss of dense and compressed training; and the
mixed-precision assignment with the least predicted damage under a byte budget. A model this small
neither confirms nor refutes a figure for a large one.

Hardware: any laptop, no GPU. About twenty minutes on one core.
Result: tables; out/compress_quality.json, which `load_record` of
`parallax.studies.quality.results` reads, and out/compress_quality.html.
Exit status: 0 ok; 2 bad input.
"""

import shlex
import sys
from dataclasses import dataclass

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import show
from parallax.report import check_writable
from parallax.report.files import save_files
from parallax.requests import shared
from parallax.requests.option import option

WIDTH = 160
RESULT_FILE = "compress_quality.json"
PAGE_FILE = "compress_quality.html"


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    data: tuple[str, ...] | None = option(
        None,
        "Text files to train on, separated by commas. Unset: Python's language reference.",
        "list",
    )
    train_steps: int = option(
        1500, "Training steps of the small model, 1024 bytes each.", "whole", unit="steps",
        at_least=1,
    )  # fmt: skip
    tune_steps: int = option(
        80, "Further steps through each format; 0: formats are measured without tuning only.",
        "whole", unit="steps", at_least=0,
    )  # fmt: skip
    race_steps: int = option(
        300,
        "Steps of each run, dense and compressed from the start, to a common loss; 0: no race.",
        "whole", unit="steps", at_least=0,
    )  # fmt: skip
    race_seeds: int = option(
        3, "Pairs of runs, each from different random weights.", "whole", at_least=0
    )
    budget_share: float = option(
        0.12,
        "The byte budget of the mixed-precision assignment, as a share of the float16 bytes of the "
        "model's layers.",
        "number",
    )
    seed: int = shared.seed()
    out: str = shared.out("Folder for compress_quality.json and compress_quality.html.")

    def unused(self) -> dict[str, str]:
        """Return the number of pairs as unused where there is no race."""
        return {} if self.race_steps else {"race_seeds": "race_steps is 0: there is no race"}


def main(flags: Flags) -> int:
    """Train the model and measure what the flags ask for."""
    from parallax.studies.quality import Settings, measure
    from parallax.studies.quality.tables import record_page, record_table

    settings = Settings(
        steps=flags.train_steps, tune_steps=flags.tune_steps,
        race_steps=flags.race_steps, race_seeds=flags.race_seeds,
        budget_share=flags.budget_share, seed=flags.seed,
    )  # fmt: skip
    check_writable(flags.out)
    data = None if flags.data is None else list(flags.data)
    with ProgressLines() as progress:
        record = measure(data, settings, command=_command(), on_progress=progress)
    files = {RESULT_FILE: record.to_json(), PAGE_FILE: record_page(record)}
    try:
        written = save_files(flags.out, files)
    finally:  # what was measured is shown on a full disk too
        show(record_table(record), WIDTH)
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _command() -> str:
    """Return the command as typed, without the folder of results."""
    given = [a for a in sys.argv[2:] if not a.startswith(("--out", "-out"))]
    return shlex.join(["parallax", "compress_quality", *given])
