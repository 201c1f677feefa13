"""The memory that rematerialisation, donation and fusion each save in a paper's full-size program.

Programs are compiled for the paper's cluster with ample memory, so that XLA recomputes nothing on
its own: two compilations of one program differ in one thing.
"""

import re
from typing import Any, NamedTuple

import jax

from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.compiling import AMPLE_BYTES, LIBRARY_GEMMS
from parallax.lenses.environment import compile_environment
from parallax.meshes.cluster import cluster
from parallax.meshes.topology import topology_devices
from parallax.papers import paper
from parallax.papers.memory_record import Counted, MemoryTerm, Term
from parallax.parallel.remat import Remat
from parallax.programs.steps import make_step
from parallax.rules import Phase
from parallax.strategies import build

# XLA's passes that fuse loops on a GPU; without them each elementwise operation is a kernel.
FUSING_PASSES = ("priority-fusion", "multi_output_fusion", "sort-iota-fusion")
_CLAIMS: dict[Term, tuple[float, str]] = {
    "rematerialisation": (75.0, "activations, by gradient checkpointing"),
    "donation": (20.0, "activations beyond that, by in-place operations"),
    "fusion": (80.0, "workspace, by operator fusion"),
}
_PROGRAMS: dict[Phase, str] = {
    "prefill": "prefill", "decode": "decoding step", "train": "training step"
}  # fmt: skip
# Operations that fusion should leave in no kernel of their own.
_ELEMENTWISE = re.compile(r" (add|multiply|subtract|divide|exponential|select|convert)\(")


class _Compiled(NamedTuple):
    temp: int
    all: int
    together: int


class _Case(NamedTuple):
    """A step and how to compile it; each row compares two of them."""

    phase: Phase
    remat: Remat = "layer"
    donate: bool = True
    fuse: bool = True


def memory_terms(
    name: str, strategy_name: str = "layerwise", on_progress: Progress = lambda line: None
) -> tuple[tuple[MemoryTerm, ...], tuple[str, ...]]:
    """Compare compiled bytes of one paper's programs under one strategy, in a child with no GPU.

    Args:
      name: name of the paper.
      strategy_name: a name of `STRATEGIES`.
      on_progress: called with a line for every compilation.

    Returns:
      A row per comparison, and what was checked in the programs' text.

    Cost: ten compilations, some minutes.
    """
    return run_in_child(
        _memory_terms, name, strategy_name,
        environment=compile_environment(), on_progress=on_progress,
    )  # fmt: skip


_ROWS: tuple[tuple[Term, Counted, _Case, _Case, str, str], ...] = (
    ("rematerialisation", "temp", _Case("train", "none"), _Case("train"),
     "every activation is kept", "a microbatch's pass is recomputed"),
    ("rematerialisation", "temp", _Case("train", "none"), _Case("train", "layer"),
     "every activation is kept", "a microbatch's pass is recomputed, then each layer"),
    ("donation", "all", _Case("train", donate=False), _Case("train"),
     "parameters and optimizer state are copied", "they are changed in place"),
    ("donation", "all", _Case("decode", donate=False), _Case("decode"),
     "the KV cache is copied", "it is changed in place"),
    ("fusion", "temp", _Case("train", fuse=False), _Case("train"),
     "an operation is a kernel", "XLA fuses them"),
    ("fusion", "temp", _Case("prefill", fuse=False), _Case("prefill"),
     "an operation is a kernel", "XLA fuses them"),
    ("fusion", "temp", _Case("decode", fuse=False), _Case("decode"),
     "an operation is a kernel", "XLA fuses them"),
)  # fmt: skip


def _memory_terms(name: str, strategy_name: str, *, on_progress: Progress) -> Any:
    compiled: dict[_Case, _Compiled] = {}
    rows, checks = [], []
    for term, counted, before, after, said, then in _ROWS:
        for case in (before, after):
            if case not in compiled:
                on_progress(f"{name}: {strategy_name}: {case}")
                compiled[case] = _compile(name, strategy_name, case)
        claimed, claim = _CLAIMS[term]
        rows.append(
            MemoryTerm(
                name, strategy_name, _PROGRAMS[before.phase], term, said, then, counted,
                getattr(compiled[before], counted), getattr(compiled[after], counted), claimed,
                claim,
            )
        )  # fmt: skip
        if term == "fusion":
            apart, together = compiled[before].together, compiled[after].together
            checks.append(
                f"{name}, {strategy_name}, {_PROGRAMS[before.phase]}: kernels with more than one "
                f"elementwise operation: {apart} without the passes "
                f"{', '.join(FUSING_PASSES)}, {together} with them"
            )
    return tuple(rows), tuple(checks)


def _compile(name: str, strategy_name: str, case: _Case) -> _Compiled:
    published = paper(name)
    devices = cluster(published.cluster)
    strategy = build(strategy_name, devices=devices.devices, cluster=devices.name)
    step = make_step(published.config, strategy, published.workload, case.phase, case.remat)
    mesh = strategy.mesh.build(topology_devices(devices, AMPLE_BYTES)[: strategy.mesh.size])
    options: dict[str, Any] = dict(LIBRARY_GEMMS)
    if not case.fuse:
        passes = (options["xla_disable_hlo_passes"], *FUSING_PASSES)
        options["xla_disable_hlo_passes"] = ",".join(passes)
    jitted = jax.jit(step.function(mesh), donate_argnums=step.donated if case.donate else ())
    compiled = jitted.lower(*step.arguments(mesh)).compile(options)
    a: Any = compiled.memory_analysis()
    total = a.argument_size_in_bytes + a.output_size_in_bytes + a.temp_size_in_bytes
    text = compiled.as_text() or ""
    return _Compiled(
        int(a.temp_size_in_bytes), int(total - a.alias_size_in_bytes), fused_kernels(text)
    )


def fused_kernels(text: str) -> int:
    """Count the fused computations of a module's text with several elementwise operations."""
    fused, inside = 0, False
    count = 0
    for line in text.splitlines():
        if line.startswith("%") and line.rstrip().endswith("{"):
            inside, count = "fused" in line.split("(")[0] or "wrapped" in line.split("(")[0], 0
        elif line.startswith("}"):
            fused += inside and count > 1
            inside = False
        elif inside and _ELEMENTWISE.search(line):
            count += 1
    return fused
