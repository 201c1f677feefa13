"""Measure how long compiling and reading the ledger take, by number of layers and of devices.

  python benchmarks/cost_of_looking.py [--out=FILE.json]

Hardware: any machine with the `aot` extra; no GPU. Result: seconds to compile one program and to
read its ledger, at the width of ring_sp. Layers are scanned, so 64 should cost about as much as 4,
under tensor_pipeline, where both fit; 64 layers replicated by ring_sequence do not fit, and the
lens then compiles twice (once to judge the fit, once to read the collectives).
"""

import json
import platform
import sys
import time

from parallax.lenses.child import run_in_child
from parallax.lenses.compiling import compile_for
from parallax.lenses.environment import compile_environment, versions
from parallax.meshes.cluster import cluster
from parallax.papers import paper
from parallax.programs.communication import forward_transfers
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import build
from parallax.workload import Workload

# strategy, layers, nodes of eight
CASES = (
    ("tensor_pipeline", 4, 2),
    ("tensor_pipeline", 16, 2),
    ("tensor_pipeline", 64, 2),
    ("ring_sequence", 4, 2),
    ("ring_sequence", 4, 8),
    ("ring_sequence", 4, 32),
    ("ring_sequence", 64, 2),
)
REPEATS = 3


def look(name: str, layers: int, nodes: int, *, on_progress) -> list[float]:
    """Return the seconds of compilation, ledger and comparison, for each repeat."""
    target = cluster(f"h100_{nodes}x8")
    config = paper("ring_sp").config.replace(num_layers=layers)
    strategy, workload = build(name, devices=target.devices), Workload(1024, 10_240, 64)
    program = ShardedTransformer(config, strategy, workload)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = compile_for(
            target,
            program.forward,
            lambda mesh: (program.abstract_state(mesh), *program.abstract_inputs(mesh)),
            strategy.mesh,
            workload=workload,
            transfers=forward_transfers(config, strategy, workload),
        )
        seconds.append(time.perf_counter() - start)
        assert found.ledger_matches, found.differences
    return seconds


def main() -> None:
    """Print a table and write it to the path of `--out`."""
    rows = []
    for name, layers, nodes in CASES:
        samples = run_in_child(look, name, layers, nodes, environment=compile_environment())
        row = {"strategy": name, "layers": layers, "devices": 8 * nodes, "seconds": samples}
        rows.append(row | {"tag": "measured"})
        what = f"{name:<16}{layers:4d} layers {8 * nodes:4d} devices"
        print(f"{what}  {min(samples):6.2f} s best of {REPEATS}", flush=True)
    print(f"64 layers against 4: {min(rows[2]['seconds']) / min(rows[0]['seconds']):.2f}x")
    for argument in sys.argv[1:]:
        if argument.startswith("--out="):
            result = {"rows": rows, "versions": versions(), "machine": platform.machine()}
            with open(argument.removeprefix("--out="), "w", encoding="utf-8") as handle:
                json.dump(result, handle, indent=1)
                handle.write("\n")


if __name__ == "__main__":
    main()
