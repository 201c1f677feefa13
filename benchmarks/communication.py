"""Write the page of every collective of the papers' strategies, by closed form and as compiled.

  python benchmarks/communication.py docs/generated/communication.md

Hardware: any machine with the `aot` extra; no GPU. Result: one page; minutes on two cores.
`tests/test_communication_page.py` compares its closed forms with the code.
"""

import sys

from communication_forms import forms_table

from parallax.bounds import Transfer
from parallax.commands.sizes import fit_microbatches
from parallax.hlo.rows import dtype_rows
from parallax.lenses.child import run_in_child
from parallax.lenses.compiling_steps import compile_program
from parallax.lenses.environment import compile_environment
from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.programs.steps import make_step
from parallax.report import words
from parallax.results.lens_results import Compilation
from parallax.strategies import build
from parallax.strategies.training_options import AUTO, TrainingOptions
from parallax.strategy import Strategy
from parallax.workload import Workload

CLUSTER = "h100_2x8"
_FSDP, _PIPELINE = ("ring_sp", "fsdp", 1024, 64), ("ring_sp", "tensor_pipeline", 1024, 128)
# Training steps: paper, strategy, batch, microbatches; each layer is recomputed on its own. The
# strategy may have further options.
TRAINED = (
    ("two_level", "tensor_pipeline", 1024, 128),
    ("two_level", "two_level", 1024, 128),
    ("ring_sp", "ring_sequence", 1024, 128),
    ("ring_sp", "double_ring", 1024, 128),
    ("ring_sp", "data_parallel", 1024, 64),
    ("ring_sp", "data_parallel", 1024, 64, TrainingOptions(shard_optimizer=(AUTO,))),
    _FSDP,
    (*_FSDP, TrainingOptions(gather="step")),
    ("ring_sp", "hsdp", 1024, 64),
    (*_PIPELINE, TrainingOptions(schedule="1f1b")),
    (*_PIPELINE, TrainingOptions(schedule="interleaved")),
    (*_PIPELINE, TrainingOptions(schedule="zb-h1")),
    ("cross_node_ep", "expert_parallel", 1024, 64),
    ("cache_layerwise", "layerwise", 256, 256),
)
# Decoding steps: paper, strategy; one token of each of DECODED_BATCH sequences after the paper's
# length.
DECODED = (
    ("ring_sp", "tensor_pipeline"),
    ("ring_sp", "ring_sequence"),
    ("ring_sp", "double_ring"),
    ("two_level", "two_level"),
    ("cache_layerwise", "layerwise"),
    ("cross_node_ep", "expert_parallel"),
    ("cross_node_ep", "tensor_pipeline"),
)
DECODED_BATCH = 64
_HEAD = """# Communication

Made by `python benchmarks/communication.py docs/generated/communication.md`. Bytes leave a
device over a whole pass or step, by ring algorithms; of permutes, a device that sends. Closed
forms are derived, programs compiled for two nodes of eight H100 and read. "Least" leaves out what
bubbles, padding, buffers and recomputation add. Routing of experts is uniform: bytes of ragged
exchanges follow from it.

Training steps recompute each layer (`--remat=layer`). Sharded weights are gathered by each layer,
forward and again backward, or with `--gather=step` all of them once; looked-up rows of tables
travel and tables do not. What is sharded, when and by which schedule: "Training" in
[design.md](../design.md#training).
"""


def programs():
    """Yield (title, model, strategy, workload, phase, remat) of every section, in order."""
    target = cluster(CLUSTER)
    for paper in PAPERS.values():
        for name in paper.strategies:
            strategy = build(name, devices=target.devices, node_size=target.gpus_per_node)
            workload = fit_microbatches(strategy, paper.workload, False)
            yield f"{paper.name}: {name}", paper.config, strategy, workload, "prefill", "none"
        for of, name, batch, microbatches, *options in TRAINED:
            if of == paper.name:
                workload = Workload(batch, paper.workload.seq_len, microbatches)
                strategy = (options or [TrainingOptions()])[0].apply(build(name))
                title = f"{paper.name}: {name}, training step{_said(*options)}"
                yield title, paper.config, strategy, workload, "train", "layer"
        for of, name in DECODED:
            if of == paper.name:
                workload = Workload(DECODED_BATCH, paper.workload.seq_len)
                title = f"{paper.name}: {name}, decoding step"
                yield title, paper.config, build(name), workload, "decode", "none"


def _said(options: TrainingOptions | None = None) -> str:
    """Return the options of a training step as they are asked for, in a title."""
    given = {} if options is None else vars(options)
    said = (
        f"--{name}={value if isinstance(value, str) else ','.join(value)}"
        for name, value in given.items()
        if value is not None
    )
    return "".join(f" with `{one}`" for one in said)


def section(title, config, strategy: Strategy, workload: Workload, phase, remat) -> str:
    """Render a program's heading and the table of its closed form."""
    size = (
        f"{workload.batch:,} x {workload.seq_len:,} tokens in "
        f"{words.counted(workload.microbatches, 'microbatch', 'microbatches')}"
    )
    step = make_step(config, strategy, workload, phase, remat)
    if step.decoder is not None:
        size = (
            f"a token of each of {workload.batch:,} sequences after {workload.seq_len:,}, in "
            f"{words.counted(step.workload.microbatches, 'microbatch', 'microbatches')}; "
            f"{words.in_bytes(step.kv_cache_bytes())} of keys and values a device"
        )
    transfers = step.of_shard_map()
    lines = [
        f"## {title}",
        "",
        f"Mesh {strategy.mesh}; {size}.",
        "",
    ]
    if not transfers:
        return "\n".join([*lines, "Nothing is sent.", ""])
    lines += ["| purpose (derived) | collective | mesh axes | times | bytes | least |",
              "|---|---|---|---:|---:|---:|"]  # fmt: skip
    return "\n".join([*lines, *(_derived(t) for t in transfers), ""])


def _derived(t: Transfer) -> str:
    axes = words.axes_name(t.axes)
    sent, least = words.in_bytes(t.wire_bytes), words.in_bytes(t.minimum_bytes)
    return words.markdown_row(t.what, t.kind, axes, f"{t.count:,}", sent, least)


def compiled_rows(found: Compilation) -> str:
    """Render what the CUDA program sends, by kind, mesh axes and dtype."""
    lines = ["| compiled | mesh axes | dtype | times | bytes | async | beside matrix products |",
             "|---|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for row in dtype_rows(found.ledger):
        total = row.total_bytes or 1.0
        lines.append(
            words.markdown_row(
                row.kind,
                words.axes_name(row.axes),
                row.dtype,
                f"{row.count:,}",
                words.in_bytes(row.total_bytes),
                words.percent(row.async_bytes / total),
                words.percent(row.overlapped_bytes / total),
            )
        )
    equal = "Equal" if found.ledger_matches else "NOT equal"
    memory = words.in_bytes(found.memory.total_bytes)
    fits = "fits" if found.memory.fits else "does not fit"
    end = f"{equal} to the closed form, by collective and mesh axes; {memory} a device, {fits}."
    return "\n".join([*lines, "", end, ""]) if found.collectives else f"{end}\n"


def compile_sections(*, on_progress) -> list[str]:
    """Compile all programs and return the parts of the page; runs in a child."""
    parts = [_HEAD, forms_table()]
    for title, config, strategy, workload, phase, remat in programs():
        on_progress(title)
        found = compile_program(config, strategy, workload, cluster(CLUSTER), phase, remat,
                                on_progress=lambda line: None)  # fmt: skip
        parts.append(section(title, config, strategy, workload, phase, remat))
        parts.append(compiled_rows(found))
    return parts


def main() -> None:
    """Write the page to the path of the argument."""
    parts = run_in_child(
        compile_sections, environment=compile_environment(),
        on_progress=lambda line: print(line, flush=True),
    )  # fmt: skip
    with open(sys.argv[1], "w", encoding="utf-8") as handle:
        handle.write("\n".join(parts).rstrip() + "\n")


if __name__ == "__main__":
    main()
