"""Plan: which strategy serves a model best, before any GPU is rented.

  parallax plan --model=ring_sp --batch=64 --prompt_len=10000 --output_len=128
  parallax plan --model=FOLDER --batch=16 --prompt_len=4096 --objective=tpot --cluster=h200_2x8
  parallax plan --model=ring_sp --batch=64 --prompt_len=10000 --max_tpot_s=0.003
  parallax plan --model=ring_sp --batch=64 --prompt_len=10000 --compression=none --compression=int8
  parallax plan --model=ring_sp --batch=4096 --prompt_len=8192 --cluster=h100_128x8 --compile_top=0

Every legal mesh x strategy x hybrid x microbatches is priced by closed form; the best few are
compiled for the cluster, with no GPU, and ranked again by their programs. FOLDER holds config.json.

Hardware: any Linux laptop, no GPU (compiling needs the `aot` extra; --compile_top=0 needs nothing).
Result: a table that says why each loser loses; out/plan.json, out/plan.html with plots, and
out/strategy.json, the winner, for --strategy of the other experiments. Seconds without compiling,
about a minute with the best five.
Exit status: 0 ok; 1 nothing fits or is fast enough; 2 bad input.
"""

import sys
from typing import Any, cast

from rich.console import Console

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines
from parallax.models.config import DType
from parallax.planning import plan
from parallax.report import check_writable
from parallax.search.results import Objective

WIDTH = 120
FLAGS = (
    flags.MODEL, flags.BATCH, flags.PROMPT_LEN, flags.OUTPUT_LEN, flags.CLUSTER, flags.OBJECTIVE,
    flags.MAX_TPOT_S, flags.COMPILE_TOP, flags.DTYPE, flags.COMPRESSION, flags.KERNELS,
    flags.RATES, flags.REGIMES, flags.OUT,
)  # fmt: skip


def main() -> int:
    """Plans what the flags ask for."""
    model, batch, prompt_len = (_given(f) for f in (flags.MODEL, flags.BATCH, flags.PROMPT_LEN))
    check_writable(flags.OUT.value)
    with ProgressLines() as progress:
        report = plan(
            model,
            batch=batch,
            prompt_len=prompt_len,
            output_len=flags.OUTPUT_LEN.value,
            cluster=flags.CLUSTER.value or "h100_2x8",
            objective=cast(Objective, flags.OBJECTIVE.value),
            max_tpot_s=flags.MAX_TPOT_S.value,
            compile_top=flags.COMPILE_TOP.value,
            dtype=cast(DType | None, flags.DTYPE.value),
            compression=flags.COMPRESSION.value,
            kernels=flags.KERNELS.value,
            rates=flags.RATES.value,
            regimes=flags.REGIMES.value,
            on_progress=progress,
        )
    Console(width=None if sys.stdout.isatty() else WIDTH).print(report.table())
    written = report.save(flags.OUT.value)
    print(f"\nwritten: {', '.join(str(path) for path in written)}")
    return 0 if report.winner is not None else 1


def _given(holder: Any) -> Any:
    if holder.value is None:
        raise ValueError(f"--{holder.name} is missing. See parallax plan --help.")
    return holder.value
