"""Bench_kernels: our attention kernel beside cuDNN's, XLA's and tokamax's, on the GPU at hand.

  parallax bench_kernels --out=out

Whole sequences at head dims 128, 256 and 512; a ring of 16 steps on one GPU; the ceiling is a
product of 8192 x 8192 bfloat16 matrices in the same run. Each is checked against float64 first.

Hardware: one NVIDIA Hopper GPU; nothing else should run on it.
Result: a table, and out/kernels.json with medians, spreads, errors and versions. Commit it as
benchmarks/GPU/kernels-DATE.json and run `python -m parallax.lenses.kernels_page`.
Exit status: 0 ok; 2 no GPU, or bad input.
"""

import json

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines
from parallax.lenses.kernel_timing import gpu_timer, time_kernels
from parallax.report import check_writable
from parallax.report.files import save_files

FLAGS = (flags.OUT,)


def main() -> int:
    """Times all cases on the first device."""
    check_writable(flags.OUT.value)
    timer = gpu_timer()
    with ProgressLines() as progress:
        record = time_kernels(timer=timer, on_progress=progress)
    best: dict[str, float] = {}
    for row in record["rows"]:
        if row["tflops"] is not None and not row["implementation"].startswith("mosaic"):
            best[row["case"]] = max(row["tflops"], best.get(row["case"], 0.0))
    for row in record["rows"]:
        print(line(row, record["ceiling_tflops"], best.get(row["case"])))
    files = {"kernels.json": json.dumps(record, indent=1) + "\n"}
    print(f"written: {', '.join(str(path) for path in save_files(flags.OUT.value, files))}")
    return 0


def line(row: dict, ceiling: float, best_peer: float | None) -> str:
    """One row of the table."""
    start = f"{row['case']:<46}{row['implementation']:<18}"
    if row["tflops"] is None:
        return f"{start}not run: {row['why_not']}"
    peer = "" if best_peer is None else f", {row['tflops'] / best_peer:.2f} of the best peer"
    return (
        f"{start}{row['tflops']:6.0f} TFLOP/s ({1e6 * row['median_s']:.0f} us, "
        f"{1e6 * row['low_s']:.0f} to {1e6 * row['high_s']:.0f}), "
        f"{100 * row['tflops'] / ceiling:.0f} % of the ceiling{peer}, error {row['error']:.1e}"
    )
