"""Time our GPU kernels against their baselines on the GPU at hand, or only compile them.

  parallax bench_kernels --out=out                          on a Hopper GPU
  parallax bench_kernels --operations=ring_attention
  parallax bench_kernels --compile_only                     no GPU: registers, shared memory, spills

Every implementation is first checked against float64, then timed one call at a time. The ceilings
are a product of 8192 x 8192 bfloat16 matrices and a copy of 4 GB, timed in the same run.

Hardware: one NVIDIA Hopper GPU on which nothing else runs; no GPU with --compile_only, which needs
the `aot` extra.
Result: a table, and out/kernels.json with medians, spreads, errors and versions. The file is
written after each case, so a run that is stopped loses at most one. This does not validate a
kernel: benchmarks/gpu_minutes.py does. With --compile_only, commit the file as
benchmarks/compiled/kernels.json and run `python -m parallax.studies.kernels.page`.
Exit status: 0 ok; 2 no GPU, or bad input.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.report import check_writable
from parallax.report.files import save_files
from parallax.requests import shared
from parallax.requests.option import option


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    operations: tuple[str, ...] | None = option(
        None,
        "Kernels, separated by commas, as docs/generated/kernels.md names them. Unset: all.",
        "list",
    )
    compile_only: bool = option(
        False, "Compile the shipped kernels for the H100 without a GPU, and time nothing.", "switch"
    )
    out: str = shared.out("Folder for kernels.json.")


def main(flags: Flags) -> int:
    """Time, or compile, all cases of the operations asked for."""
    from parallax.studies.kernels.timing import operations_named

    check_writable(flags.out)
    names = operations_named(flags.operations)

    def save(record: dict) -> tuple[Path, ...]:
        return save_files(flags.out, {"kernels.json": json.dumps(record, indent=1) + "\n"})

    written = save(_compile(names) if flags.compile_only else _time(names, save))
    print(f"written: {', '.join(str(path) for path in written)}")
    return 0


def _time(names: list[str], save: Callable[[dict], Any]) -> dict:
    from parallax.studies.kernels.timing import gpu_timer, time_kernels

    timer = gpu_timer()
    with ProgressLines() as progress:
        record = time_kernels(names, timer=timer, on_progress=progress, on_record=save)
    best: dict[tuple, float] = {}
    for row in record["rows"]:
        if row["median_s"] is not None and not row["implementation"].startswith("mosaic"):
            key = row["operation"], row["case"]
            best[key] = min(row["median_s"], best.get(key, row["median_s"]))
    for row in record["rows"]:
        print(timed_line(row, best.get((row["operation"], row["case"]))))
    return record


def _compile(names: list[str]) -> dict:
    from parallax.lenses.child import run_in_child
    from parallax.lenses.environment import compile_environment, installed_versions
    from parallax.lenses.machine_code import compile_operations

    with ProgressLines() as progress:
        compiled = run_in_child(
            compile_operations, names, environment=compile_environment(), on_progress=progress
        )
    rows = []
    for operation, case, code in compiled:
        wgmma = {"wgmma": len(code.products)}
        row = {"operation": operation, "case": case} | asdict(code) | wgmma
        del row["products"], row["assembler"]
        rows.append(row)
        print(compiled_line(row))
    assemblers = ", ".join(
        sorted({f"{code.assembler.version} ({code.assembler.source})" for _, _, code in compiled})
    )
    return {
        "versions": installed_versions("jax", "jax-cuda12-plugin") | {"assembler": assemblers},
        "rows": rows,
    }


def timed_line(row: dict, best_peer_s: float | None) -> str:
    """Return one row of the table."""
    start = f"{row['operation']:<23} {row['case']:<52} {row['implementation']:<24} "
    if row["median_s"] is None:
        return f"{start}not run: {row['why_not']}"
    peer = "" if best_peer_s is None else f", {best_peer_s / row['median_s']:.2f} of the best peer"
    return (
        f"{start}{rate(row):>12} ({1e6 * row['median_s']:.0f} us, "
        f"{1e6 * row['low_s']:.0f} to {1e6 * row['high_s']:.0f}), "
        f"{100 * row['share_of_floor']:.0f} % of the floor{peer}, error {row['error']:.1e}"
    )


def rate(row: dict) -> str:
    """Return the rate of what bounds the case: TFLOP/s, or GB/s of the minimum bytes."""
    if row["bound_by"] == "bytes":
        return f"{row['gb_per_s']:.0f} GB/s"
    return f"{row['tflops']:.0f} TFLOP/s"


def compiled_line(row: dict) -> str:
    """Return one row of the table."""
    spilled = row["stack_bytes"] + row["spill_store_bytes"] + row["spill_load_bytes"]
    roles = f", then {'/'.join(map(str, row['registers']))}" if row["registers"] else ""
    return (
        f"{row['operation']:<23} {row['case']:<64} {row['name']:<29} {row['wgmma']:3} wgmma, "
        f"registers {row['entry_registers']} at entry{roles}, {row['shared_bytes']:,} B shared, "
        f"spills {spilled} B"
    )
