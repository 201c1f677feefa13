"""Measure device memory traffic of cache-tiled layers against that of the ordinary order.

  python benchmarks/cache_tiled.py benchmarks/cpu/cache_tiled.json

Hardware: any machine with the `aot` extra; no GPU. Result: for both layer-wise papers at full size,
decoding in 1 to 64 microbatches, unsplit and in 16 stages, one prefill each, and the second with
its formats: bytes of weights and of the KV cache (derived), all bytes of the compiled program with
what its L2 cache holds (modelled), its temporary buffers (compiled) and its time (modelled). About
fifteen minutes on one core.
"""

import datetime
import json
import sys
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from parallax.cost import estimate_cost, rates_of
from parallax.lenses.child import run_in_child
from parallax.lenses.compiling_steps import compile_step
from parallax.lenses.environment import compile_environment
from parallax.meshes.cluster import cluster
from parallax.papers import paper
from parallax.placement import most_tokens, parse_budget, tile_traffic, tiles_under
from parallax.programs.steps import make_step
from parallax.strategies import cache_tiled, data_parallel, layerwise

CLUSTER, BUDGET, DEVICES = "h100_2x8", "l2", 16
PAPERS = ("cache_layerwise", "compressed_layerwise")
COUNTS = (1, 2, 4, 8, 16, 32, 64)
STAGED = 64  # microbatches of the pipeline's step, in groups
FORMATS = ("int8", "int8+2:4")  # of compressed_layerwise
NOTES = (
    "memory_bytes less kv_bytes_read is weights, activations and what XLA copies",
    "with fewer rounds than stages most passes of a pipeline are its bubble, and read keys too",
    "one row a microbatch: XLA makes multiply and reduce of products, and writes the multiples",
    "no cache holds a slab of attention beside a stream of keys; products and attention are loops "
    "of their own",
)


def cases():
    """Yield (paper, phase, strategy's name, microbatches, microbatches per group, formats).

    A group of 0 is the ordinary order.
    """
    for name in PAPERS:
        rows = paper(name).workload.batch // DEVICES
        for count in COUNTS:
            if count <= rows:
                yield name, "decode", "data_parallel", count, 0, None
                yield name, "decode", "data_parallel", count, count, None
        for round in (0, *COUNTS):
            yield name, "decode", "layerwise", STAGED, round, None
        for round in (0, 2):
            yield name, "prefill", "layerwise", paper(name).workload.microbatches, round, None
    for round in (0, 2, 4):
        yield PAPERS[1], "decode", "layerwise", STAGED, round, FORMATS
    for round in (0, 4):
        yield PAPERS[1], "decode", "data_parallel", 4, round, FORMATS


def look(tasks, *, on_progress) -> list[dict[str, Any]]:
    """Compile every case and estimate its cost; runs in a child."""
    return [one(*task, on_progress=on_progress) for task in tasks]


def one(name, phase, kind, microbatches, round, formats, *, on_progress) -> dict[str, Any]:
    target, published = cluster(CLUSTER), paper(name)
    config, workload = published.config, published.workload
    # A weight tile of a compressed layer is decompressed in the cache.
    tiles = tiles_under(config, parse_budget(BUDGET, target.gpu).n_bytes)
    config = config.replace(compression=formats)
    strategy = data_parallel(DEVICES) if kind == "data_parallel" else layerwise(DEVICES)
    if round:
        strategy = cache_tiled(strategy, *tiles, round=round)
    on_progress(f"{name}: {phase}: {strategy.name}, {microbatches} microbatches, rounds of {round}")
    step = make_step(config, strategy, replace(workload, microbatches=1), phase)
    step = step.with_microbatches(microbatches)
    found = compile_step(step, target)
    assert found.work is not None, found.unpriced
    assert found.differences == (), found.differences
    rates = rates_of(target.gpu.name)
    cost = estimate_cost(found.work, target, rates, loops_reuse_cache=True)
    split = strategy.split()
    tokens = step.tokens // split.count("act_batch") // microbatches
    derived = tile_traffic(config, tiles, tokens, round or 1)
    passes = strategy.layers.ticks(microbatches, split.count("layers"))
    held = step.decoder.kv_bytes() if step.decoder else 0.0  # a prefill reads no cache
    kv_bytes = held * passes * (round or 1) / microbatches
    return {
        "paper": name,
        "phase": phase,
        "strategy": strategy.name,
        "microbatches": microbatches,
        "round": round,
        "tiles": list(tiles) if round else [1, 1],
        "formats": formats,
        "passes": passes,
        "tokens_a_microbatch": tokens,
        "derived": {
            "weight_bytes": step.weight_bytes(),
            "kv_bytes_read": kv_bytes,
            "tiling_activation_bytes_a_layer": derived.activations if round else 0,
            "most_tokens_where_tiling_saves": most_tokens(config, tiles, round) if round else None,
        },
        "compiled": {"temp_bytes": found.memory.temp_bytes},
        "modelled": {
            "memory_bytes": cost.memory_bytes,
            "seconds": cost.seconds,
            "terms_s": cost.terms,
        },
    }


def main(path: str) -> None:
    rows = run_in_child(
        look, list(cases()), environment=compile_environment(),
        on_progress=lambda line: print(line, flush=True),
    )  # fmt: skip
    budget = parse_budget(BUDGET, cluster(CLUSTER).gpu)
    record = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/cache_tiled.py {path}",
        "versions": {name: version(name) for name in ("jax", "jax-cuda12-plugin")},
        "cluster": CLUSTER,
        "budget": {"bytes": budget.n_bytes, "is": budget.source},
        "tags": "derived: closed forms; compiled: read off the program; modelled: the program's "
        "kernels priced with an L2 cache that loops may reuse, on one device, one call",
        "notes": NOTES,
        "rows": rows,
    }  # fmt: skip
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    for row in rows:
        derived, modelled = row["derived"], row["modelled"]
        rest = modelled["memory_bytes"] - derived["kv_bytes_read"]
        print(
            f"{row['paper']} {row['phase']} {row['strategy']} {row['formats'] or ''} "
            f"M={row['microbatches']} round={row['round']}: weights "
            f"{derived['weight_bytes'] / 1e9:.1f} GB derived, all but KV {rest / 1e9:.1f} GB and "
            f"{modelled['seconds'] * 1e3:.1f} ms modelled"
        )


if __name__ == "__main__":
    main(sys.argv[1])
