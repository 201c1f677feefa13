"""Parallax's own programs beside what people run, term by term: docs/generated/beside.md.

python -m parallax.studies.validation.beside       writes it; seconds, nothing is compiled
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from parallax.analytic import estimate
from parallax.commands.describe import describe
from parallax.meshes.cluster import cluster
from parallax.programs.steps import Phase, make_step
from parallax.report.facts import Cell
from parallax.report.grid import DataTable, Heads, grid_markdown
from parallax.strategies import data_parallel, fsdp, hybrid, tensor_pipeline
from parallax.strategy import Strategy
from parallax.studies.validation.models import model_of
from parallax.workload import Workload

PAGE = Path(__file__).parents[3] / "docs" / "generated" / "beside.md"
NODE = "h100_1x8"
TERMS = ("matrix products", "attention", "memory", "launches", "exposed communication")
# Terms below this share of the described step are left alone.
_NOTABLE = 0.05


class Case(NamedTuple):
    """A step that our program and other software both run.

    Attributes:
      title: what it is.
      model: a model beside the tables.
      strategy, workload, phase: our program.
      software, split, more: how `describe` names the same step.
    """

    title: str
    model: str
    strategy: Strategy
    workload: Workload
    phase: Phase
    software: str
    split: str
    more: Mapping[str, Any]


def cases() -> tuple[Case, ...]:
    """Return the steps that are compared, all on one node of eight H100."""
    step, mixed = {"batch": 16, "seq_len": 4096}, hybrid(data_parallel(2), tensor_pipeline(2, 2))
    loads = {"phase": "serve", "batch": 16, "prompt_len": 1024, "output_len": 1024}
    return (
        Case("Llama-3.1-8B, training, weights sharded over 8", "llama-3.1-8b", fsdp(8),
             Workload(16, 4096, 2), "train", "torchtitan", "data=8",
             {**step, "microbatches": 2, "zero": 3}),
        Case("Llama-3.1-8B, training, 2 replicas x tensor 2 x 2 stages", "llama-3.1-8b", mixed,
             Workload(16, 4096, 8), "train", "megatron", "data=2,tensor=2,pipeline=2",
             {**step, "microbatches": 8, "zero": 1}),
        Case("Qwen3-32B, decoding 16 sequences, tensor 8", "qwen3-32b", tensor_pipeline(8, 1),
             Workload(16, 1536), "decode", "vllm", "tensor=8", loads),
    )  # fmt: skip


def beside(case: Case) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return the seconds by term of our program, by the analytical model, and of the software."""
    config = model_of(case.model)
    step = make_step(config, case.strategy, case.workload, case.phase, remat="none")
    found = describe(
        config, case.split, implementation=case.software, cluster=NODE, **case.more
    )  # fmt: skip
    theirs = found.terms_s["step_s" if case.phase == "train" else "tpot_s"]
    return estimate(step, cluster(NODE)).cost.terms, theirs


def page() -> str:
    """Render the page."""
    lines = [_HEAD]
    for case in cases():
        ours, theirs = beside(case)
        lines += [grid_markdown(_table(case, ours, theirs))]
    return "\n".join([*lines, *_FINDINGS]).rstrip() + "\n"


def _table(case: Case, ours: Mapping[str, float], theirs: Mapping[str, float]) -> DataTable:
    heads: Heads = (("term, ms", None), ("Parallax", "modelled"), (case.software, "modelled"),
                    ("Parallax / it", "modelled"))  # fmt: skip
    rows = []
    whole = sum(theirs.values())
    for name in (*TERMS, "whole step"):
        mine = sum(ours.values()) if name == "whole step" else ours.get(name, 0.0)
        other = whole if name == "whole step" else theirs.get(name, 0.0)
        ratio = f"{mine / other:.2f}" if other >= _NOTABLE * whole else "-"
        rows.append((Cell(name), Cell(f"{1e3 * mine:.4g}"), Cell(f"{1e3 * other:.4g}"),
                     Cell(ratio)))  # fmt: skip
    return DataTable(case.title, heads, tuple(rows))


_HEAD = """\
# Parallax's programs beside what people run

Made by `python -m parallax.studies.validation.beside`. Both columns have the same products,
collectives and rates; what differs is what each program does. Nothing here is fitted, and nothing
was measured: where Parallax is slower, that is a finding about its program, not about the strategy.
"""
_FINDINGS = (
    "## Why",
    "",
    "- **Memory.** Attention that no GPU has validated runs as XLA writes it: scores are stored "
    "and read, which fused attention does not do; it is in `memory` and `matrix products`, not in "
    "`attention`. Training keeps float32 parameters and casts them for every microbatch, stacks "
    "what each layer keeps, and a pipeline copies it into slots.",
    "- **Launches.** A kernel costs 2 us in a loop that XLA runs without a CUDA graph. The "
    "software beside it either runs graphs (vLLM) or has fewer, larger kernels; its `launches` is "
    "time in which the GPU waits for the host.",
    "- **Products.** In decoding, q, k, v and gate, up are products of their own; vLLM stores them "
    "joined: 7 against 4 a layer.",
    "- **Exposed communication.** vLLM sums small arrays in one kernel over all GPUs; XLA calls "
    "NCCL. Sharded weights are gathered a layer ahead in both.",
)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
