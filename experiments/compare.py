"""Compare partitioning strategies: exact? fits? what moves against the minimum? how fast at best?

  parallax compare --paper=ring_sp
  parallax compare --paper=all
  parallax compare --paper=ring_sp --cluster=h100_nvl16
  parallax compare --model=two_level --strategies=data_parallel --batch=64 --seq_len=32768
  parallax compare --paper=two_level --phase=train --remat=layer --microbatches=128
  parallax compare --paper=compressed_layerwise --phase=decode --compression=int8,int8+2:4
  parallax compare --strategies=ring_sequence+data_parallel --mesh=data=2,seq=8 --model=ring_sp
  parallax compare --paper=ring_sp --sweep=seq_len:4k..128k
  parallax compare --paper=ring_sp --sweep=devices:2..64
  parallax compare --from_report=out/report.json

Hardware: any Linux laptop, no GPU. verify runs the small model on 16 virtual CPU devices; compile
makes the real CUDA program of the full-size one (needs the `aot` extra).
Result: a table, out/report.json and out/report.html; about a minute on two cores.
Exit status: 0 ok; 1 not exact, does not fit, or bytes differ from the closed form; 2 bad input.
"""

import sys
from pathlib import Path

from absl import flags as flag_values
from rich.console import Console

from parallax.comparing import compare, compare_papers
from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines
from parallax.report import check_writable, load_request, overview_table

WIDTH = 100
ALL = "all"  # of --paper: every paper on one page
FLAGS = (
    flags.PAPER, flags.MODEL, flags.STRATEGIES, flags.STRATEGY, flags.MESH, flags.BATCH,
    flags.SEQ_LEN, flags.MICROBATCHES, flags.DTYPE, flags.COMPRESSION, flags.KERNELS,
    flags.CLUSTER, flags.LENSES, flags.BUDGET, flags.PACKED,
    flags.SMALL, flags.PHASE, flags.REMAT, flags.TEXT, flags.REPEATS, flags.SWEEP, flags.OUT,
    flags.FROM_REPORT,
)  # fmt: skip


def main() -> int:
    """Runs the comparison that the flags ask for."""
    check_writable(flags.OUT.value)
    request = (
        _request() if flags.FROM_REPORT.value is None else load_request(flags.FROM_REPORT.value)
    )
    if request["paper"] == ALL:
        return _all_papers(request)
    with ProgressLines() as progress:
        report = compare(**request, on_progress=progress)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(report.table())
    written = report.save(flags.OUT.value)
    print(f"\nwritten: {', '.join(map(str, written))} ({report.seconds:.0f} s)")
    return report.exit_status


def _all_papers(request: dict) -> int:
    """One page of all papers, and each one's report in a folder of its own."""
    with ProgressLines() as progress:
        reports = compare_papers(on_progress=progress, **{**request, "paper": None})
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(overview_table(reports))
    for report in reports:
        assert report.paper is not None
        report.save(Path(flags.OUT.value) / report.paper.name)
    print(f"\nwritten: {flags.OUT.value}/<paper>/report.html, .json ({reports[0].seconds:.0f} s)")
    return max(report.exit_status for report in reports)


def _request() -> dict:
    strategies = flags.STRATEGIES.value
    if flags.STRATEGY.value is not None:
        if strategies is not None:
            raise ValueError("--strategy and --strategies are both given. Use one of them.")
        strategies = [flags.STRATEGY.value]
    # A sweep has other default lenses: verify only if it was asked for.
    is_given = flags.SWEEP.value is None or flag_values.FLAGS[flags.LENSES.name].present
    lenses = flags.LENSES.value if is_given else None
    return {
        "paper": flags.PAPER.value,
        "model": flags.MODEL.value,
        "strategies": strategies,
        "mesh": flags.MESH.value,
        "batch": flags.BATCH.value,
        "seq_len": flags.SEQ_LEN.value,
        "microbatches": flags.MICROBATCHES.value,
        "dtype": flags.DTYPE.value,
        "compression": flags.compression(),
        "kernels": flags.KERNELS.value,
        "cluster": flags.CLUSTER.value,
        "lenses": lenses,
        "budget": flags.BUDGET.value,
        "packed": flags.PACKED.value,
        "small": flags.SMALL.value,
        "phase": flags.PHASE.value,
        "remat": flags.REMAT.value,
        "text": flags.TEXT.value,
        "repeats": flags.REPEATS.value,
        "sweep": flags.SWEEP.value,
    }
