"""How long it takes to look: compile and ledger by number of layers and of devices.

  python benchmarks/cost_of_looking.py [--out=FILE.json]

Hardware: any machine with the `aot` extra; no GPU. Result: seconds of one program's compile and of
reading its ledger, ring_sequence at the width of ring_sp; layers are scanned, so 64 should cost
about what 4 do.
"""

import json
import platform
import sys
import time

from parallax.communication import forward_transfers
from parallax.comparing import versions
from parallax.lenses.child import run_in_child
from parallax.lenses.compiling import compile_for
from parallax.lenses.environment import compile_environment
from parallax.meshes.cluster import cluster
from parallax.papers import paper
from parallax.spmd import ShardedTransformer
from parallax.strategies import ring_sequence
from parallax.workload import Workload

LAYERS = (4, 16, 64)
NODES = (2, 8, 32)
REPEATS = 3


def looked(layers: int, nodes: int, *, on_progress) -> list[float]:
    """Seconds of compile, ledger and comparison, for each repeat."""
    where = cluster(f"h100_{nodes}x8")
    config = paper("ring_sp").config.replace(num_layers=layers)
    strategy, workload = ring_sequence(where.devices), Workload(1024, 10_240, 64)
    program = ShardedTransformer(config, strategy, workload)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = compile_for(
            where,
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
    """Prints a table and writes it where `--out` says."""
    cases = [(layers, NODES[0]) for layers in LAYERS] + [(LAYERS[0], nodes) for nodes in NODES[1:]]
    rows = []
    for layers, nodes in cases:
        samples = run_in_child(looked, layers, nodes, environment=compile_environment())
        rows.append({"layers": layers, "devices": 8 * nodes, "seconds": samples, "tag": "measured"})
        best = min(samples)
        print(
            f"{layers:4d} layers {8 * nodes:4d} devices  {best:6.2f} s best of {REPEATS}",
            flush=True,
        )
    base = min(rows[0]["seconds"])
    for row in rows:
        row["ratio_to_first"] = min(row["seconds"]) / base
    print(f"64 layers against 4: {rows[len(LAYERS) - 1]['ratio_to_first']:.2f}x")
    for argument in sys.argv[1:]:
        if argument.startswith("--out="):
            result = {"rows": rows, "versions": versions(), "machine": platform.machine()}
            with open(argument.removeprefix("--out="), "w", encoding="utf-8") as handle:
                json.dump(result, handle, indent=1)
                handle.write("\n")


if __name__ == "__main__":
    main()
