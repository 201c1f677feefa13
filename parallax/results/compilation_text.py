"""A compiled program in words, for `print`."""

from typing import Any

_HOW = (
    "The text of the compiled module is not kept. To have it, set XLA_FLAGS=--xla_dump_to=FOLDER "
    "before the start and read *after_optimizations.txt there; parallax inspect reads it too."
)


def compilation_text(compiled: Any) -> str:
    """Return what a `Compilation` found, one fact a line, and how to get the module's text."""
    memory, workload = compiled.memory, compiled.workload
    fits = "fits" if memory.fits else "does not fit"
    verdict = "as its closed form" if compiled.ledger_matches else "other than its closed form"
    lines = [
        f"{compiled.phase} for {compiled.cluster}, mesh {compiled.mesh}: {workload.batch:,} x "
        f"{workload.seq_len:,} tokens, microbatches {workload.microbatches}",
        f"memory per device: {_gb(memory.total_bytes)} of {_gb(memory.usable_bytes)}, {fits}",
        f"matrix products per device: {compiled.gemm_flops:.4g} FLOP",
        f"sent per device: {_gb(compiled.wire_bytes)}"
        + (f", {verdict}" if compiled.has_closed_form else ""),
    ]
    for c in compiled.collectives:
        axes = ",".join(c.axes) if c.axes else f"groups of {c.group_size}"
        lines.append(
            f"  {c.kind} over {axes}: {c.count:,} x {c.payload_bytes:,} B of {c.dtype}, "
            f"{'async' if c.is_async else 'synchronous'} ({c.op_name})"
        )
    return "\n".join([*lines, *compiled.notes, _HOW])


def _gb(value: float) -> str:
    return f"{value / 1e9:.4g} GB"
