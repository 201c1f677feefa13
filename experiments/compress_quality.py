"""Compress quality: what fewer bits a weight cost a model that is trained here, measured.

  parallax compress_quality
  parallax compress_quality --data=FILE,FILE --train_steps=3000
  parallax compress_quality --train_steps=100 --tune_steps=0 --race_steps=0       (a quick look)

Trains a small byte-level model on real text (Python's own language reference, 0.4 MB of English
that ships with it, or FILEs), then stores its matrices as INT8, INT4, 2:4 sparse and combined, as
they are and after a short tuning through the format. Measures perplexity of held-out text and a
task (which of four continuations is the text's own) with 95 % intervals paired with float16, the
error of every matrix, steps to a loss of dense against compressed training, and the mildest mix of
formats under a byte budget. A model this small neither confirms nor refutes a figure for a large
one.

Hardware: any laptop, no GPU. About twenty minutes on one core.
Result: tables; out/compress_quality.json, which `parallax.quality_results.load_record` reads, and
out/compress_quality.html.
Exit status: 0 ok; 2 bad input.
"""

import shlex
import sys

from rich.console import Console

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines
from parallax.report import check_writable
from parallax.report.files import save_files

WIDTH = 160
RESULT_FILE = "compress_quality.json"
PAGE_FILE = "compress_quality.html"
FLAGS = (
    flags.DATA, flags.TRAIN_STEPS, flags.TUNE_STEPS, flags.RACE_STEPS, flags.RACE_SEEDS,
    flags.BUDGET_SHARE, flags.SEED, flags.OUT,
)  # fmt: skip


def main() -> int:
    """Measures what the flags ask for."""
    from parallax.quality import Settings, measure
    from parallax.quality.tables import record_page, record_table

    settings = Settings(
        steps=flags.TRAIN_STEPS.value, tune_steps=flags.TUNE_STEPS.value,
        race_steps=flags.RACE_STEPS.value, race_seeds=flags.RACE_SEEDS.value,
        budget_share=flags.BUDGET_SHARE.value, seed=flags.SEED.value,
    )  # fmt: skip
    check_writable(flags.OUT.value)
    with ProgressLines() as progress:
        record = measure(
            flags.DATA.value, settings, command=_command(), on_progress=progress,
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else WIDTH).print(record_table(record))
    written = save_files(
        flags.OUT.value, {RESULT_FILE: record.to_json(), PAGE_FILE: record_page(record)}
    )
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _command() -> str:
    """As typed, without where results go."""
    given = [a for a in sys.argv[2:] if not a.startswith(("--out", "-out"))]
    return shlex.join(["parallax", "compress_quality", *given])
