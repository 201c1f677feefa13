"""Compare the analytical model's ranking of strategies with compiled programs'; not accuracy.

  python benchmarks/consistency.py benchmarks/cpu/consistency.json

Hardware: any machine with the `aot` extra; no GPU. Result: for 24 workloads every strategy's
modelled step, by the analytical model and for the compiled program, Kendall's tau between the two
rankings and the regret of the analytical model's first choice. About 25 minutes on one core.
"""

import datetime
import json
import statistics
import sys
from importlib.metadata import version
from typing import Any

from scipy.stats import kendalltau

from parallax.analytic import estimate
from parallax.commands.sizes import fit_microbatches
from parallax.cost import rates_of
from parallax.lenses.child import run_in_child
from parallax.lenses.compiling_steps import compile_program
from parallax.lenses.environment import compile_environment
from parallax.lenses.predicting import predict
from parallax.meshes.cluster import cluster
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.papers import PAPERS
from parallax.programs.steps import make_step
from parallax.rules import Phase
from parallax.strategies import build
from parallax.workload import Workload

CLUSTER = "h100_2x8"
_DENSE = ModelConfig(
    "dense_8b", num_layers=32, d_model=4096, num_heads=32, num_kv_heads=16, head_dim=128,
    d_ff=14336, vocab_size=128_000, mlp="gated", dtype="bfloat16",
)  # fmt: skip
MODELS = {
    **{name: paper.config for name, paper in PAPERS.items()},
    "dense_8b": _DENSE,
    "dense_70b": _DENSE.replace(
        name="dense_70b", num_layers=80, d_model=8192, num_heads=64, d_ff=28672
    ),
    "moe_16": _DENSE.replace(
        name="moe_16", num_layers=16, d_ff=8192, vocab_size=32_000, num_experts=16
    ),
}
DENSE = (
    ("tensor_pipeline", None), ("ring_sequence", None), ("double_ring", None), ("ulysses", None),
    ("two_level", None), ("data_parallel", None), ("layerwise", None),
    ("tensor_pipeline", "stage=1,tensor=16"), ("tensor_pipeline", "stage=4,tensor=4"),
    ("data_parallel+tensor_pipeline", "data=2,stage=1,tensor=8"),
)  # fmt: skip
SPARSE = (("expert_parallel", None), *DENSE)
# model, phase, batch, length
WORKLOADS: tuple[tuple[str, Phase, int, int], ...] = (
    ("ring_sp", "prefill", 1024, 10_000), ("ring_sp", "prefill", 256, 2048),
    ("ring_sp", "prefill", 64, 32_768), ("ring_sp", "prefill", 16, 65_536),
    ("two_level", "prefill", 128, 4096), ("compressed_layerwise", "prefill", 128, 10_000),
    ("dense_8b", "prefill", 256, 2048), ("dense_8b", "prefill", 64, 8192),
    ("dense_8b", "prefill", 16, 32_768), ("dense_70b", "prefill", 64, 4096),
    ("dense_70b", "prefill", 16, 16_384), ("moe_16", "prefill", 128, 4096),
    ("ring_sp", "decode", 64, 10_000), ("ring_sp", "decode", 512, 2048),
    ("ring_sp", "decode", 16, 65_536), ("two_level", "decode", 64, 4096),
    ("compressed_layerwise", "decode", 128, 10_000), ("dense_8b", "decode", 16, 8192),
    ("dense_8b", "decode", 64, 8192), ("dense_8b", "decode", 512, 2048),
    ("dense_70b", "decode", 16, 8192), ("dense_70b", "decode", 128, 4096),
    ("moe_16", "decode", 64, 4096), ("moe_16", "decode", 512, 2048),
)  # fmt: skip


def cases():
    """Yield (workload's index, strategy, Workload) of all cases that can run."""
    for number, (model, phase, batch, length) in enumerate(WORKLOADS):
        config = MODELS[model]
        for name, mesh in SPARSE if config.num_experts else DENSE:
            strategy = build(name, MeshSpec.parse(mesh) if mesh else None, cluster=CLUSTER)
            if mesh:
                strategy = strategy.replace(name=f"{name} {mesh}")
            try:
                # A decoding step has its own microbatches, independent of its prompts'.
                workload = fit_microbatches(strategy, Workload(batch, length, 16), False)
                make_step(config, strategy, workload, phase)
            except ValueError:
                continue
            yield number, strategy, workload


def compiled(number, strategy, workload, *, on_progress):
    """Compile the program of one case; runs in a child."""
    model, phase, *_ = WORKLOADS[number]
    return compile_program(
        MODELS[model], strategy, workload, cluster(CLUSTER), phase, on_progress=on_progress
    )


def both(number, strategy, workload, compilation) -> tuple[float, float]:
    """Return seconds by the analytical model and for the compiled program."""
    model, phase, *_ = WORKLOADS[number]
    config, target = MODELS[model], cluster(CLUSTER)
    closed = estimate(make_step(config, strategy, workload, phase), target).cost.seconds
    return closed, predict(compilation, target, config.dtype).step_s.value


def record(results) -> dict:
    """Return the JSON of all workloads.

    Args:
      results: (workload's number, strategy's name, seconds by the analytical model, and compiled).
    """
    workloads = []
    for number, (model, phase, batch, length) in enumerate(WORKLOADS):
        rows = [(name, a, b) for n, name, a, b in results if n == number]
        closed, programs = [r[1] for r in rows], [r[2] for r in rows]
        first = programs[closed.index(min(closed))]
        ranked: Any = kendalltau(closed, programs)
        workloads.append({
            "model": model, "phase": phase, "batch": batch, "seq_len": length,
            "kendall_tau": float(ranked.statistic),
            "regret": first / min(programs) - 1,
            "strategies": {name: {"closed_form_s": a, "compiled_s": b} for name, a, b in rows},
        })  # fmt: skip
    apart = [abs(a / b - 1) for _, _, a, b in results]
    return {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/consistency.py benchmarks/cpu/consistency.json",
        "cluster": CLUSTER, "rates": rates_of(cluster(CLUSTER).gpu.name).version,
        "jax": version("jax"), "programs": len(results),
        "kendall_tau_mean": statistics.mean(w["kendall_tau"] for w in workloads),
        "kendall_tau_least": min(w["kendall_tau"] for w in workloads),
        "regret_mean": statistics.mean(w["regret"] for w in workloads),
        "regret_most": max(w["regret"] for w in workloads),
        "apart_median": statistics.median(apart),
        "apart_over_10_percent": sum(x > 0.1 for x in apart),
        "tag": "modelled", "workloads": workloads,
    }  # fmt: skip


def main(path: str) -> None:
    results = []
    for number, strategy, workload in cases():
        compilation = run_in_child(
            compiled, number, strategy, workload, environment=compile_environment(),
            on_progress=lambda line: None,
        )  # fmt: skip
        results.append((number, strategy.name, *both(number, strategy, workload, compilation)))
        print(*WORKLOADS[number], *results[-1][1:], flush=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record(results), file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
