"""Find the strategy that serves or trains a model best, before any GPU is rented.

  parallax plan --model=ring_sp --batch=64 --prompt_len=10000 --output_len=128
  parallax plan --model=FOLDER --batch=16 --prompt_len=4096 --objective=tpot --cluster=h200_2x8
  parallax plan --model=ring_sp --batch=64 --prompt_len=10000 --max_tpot_s=0.003
  parallax plan --model=ring_sp --batch=64 --prompt_len=10000 --compression=none --compression=int8
  parallax plan --model=ring_sp --batch=4096 --prompt_len=8192 --cluster=h100_128x8 --compile_top=0
  parallax plan --phase=train --model=FOLDER --batch=64 --seq_len=8192 --cluster=h100_2x8
  parallax plan --phase=train --model=FOLDER --batch=64 --seq_len=8192 --max_memory=60GB

Every legal combination of mesh, strategy (hybrids included) and microbatches is ranked by the
analytical model. The best few are compiled for the cluster, without a GPU, and ranked again by
their programs. FOLDER holds config.json. With --phase=train each strategy is also tried with its
weights and optimizer state sharded in several ways, every pipeline schedule, and more recomputation
where it does not fit; the command that trains as the winner does is printed.

Hardware: any Linux laptop, no GPU (compiling needs the `aot` extra; --compile_top=0 needs nothing).
Result: a table that says why each candidate is not first; out/plan.json, out/plan.html with plots,
and out/strategy.json, the winner, to pass as --strategy to the other experiments. Seconds without
compiling, about a minute with the best three, or with --phase=train the best one.
Exit status: 0 ok; 1 nothing fits, or nothing is fast enough; 2 bad input.
"""

from dataclasses import dataclass

from parallax.commands.plan import run_plan
from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import show
from parallax.report import check_writable
from parallax.requests import shared
from parallax.requests.option import nested
from parallax.requests.plan import PlanRequest

WIDTH = 120


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    request: PlanRequest = nested(PlanRequest)
    out: str = shared.out("Folder for plan.json, plan.html and strategy.json, the winner.")


def main(flags: Flags) -> int:
    """Rank the strategies for what the flags ask for."""
    check_writable(flags.out)
    with ProgressLines() as progress:
        report = run_plan(flags.request, on_progress=progress)
    try:
        written = report.save(flags.out)
    finally:  # what was found is shown on a full disk too
        show(report.table(), WIDTH)
    print(f"\nwritten: {', '.join(str(path) for path in written)}")
    if command := report.command(flags.out):
        print(command)
    return 0 if report.winner is not None else 1
