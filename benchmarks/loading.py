"""Memory and time of loading a 1 GB folder of weights over 16 virtual devices.

  python benchmarks/loading.py [--gb=1] [--out=benchmarks/loading.json]

Makes a synthetic Llama folder (bfloat16, random) in a temporary place and loads it under each
strategy in a process of its own. Result: per strategy the bytes placed on all devices, replicas
counted, the peak of the process's memory above its level before loading, and their ratio.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment
from parallax.models.config import ModelConfig

STRATEGIES = {
    "tensor_pipeline": "stage=2,tensor=8",
    "two_level": "head_group=4,head_slice=4",
    "layerwise": "stage=16",
    "ring_sequence+tensor_pipeline": "seq=4,tensor=4",
    "ring_sequence": "seq=16",
}


def model(gb: float) -> ModelConfig:
    """A Llama of about so many GB in bfloat16."""
    one = ModelConfig(
        "synthetic", 16, 1024, 16, 16, 64, 2816, 32_000, mlp="gated", dtype="bfloat16",
        norm_epsilon=1e-6,
    )  # fmt: skip
    layer = (one.replace(num_layers=32).num_params - one.num_params) / 16
    layers = round((gb * 5e8 - 2 * one.vocab_size * one.d_model) / layer / 16) * 16
    return one.replace(num_layers=max(16, layers))


def make_folder(folder: str, config: ModelConfig, *, on_progress) -> int:
    """Random weights, saved layer by layer."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from parallax.models.huggingface.configs import to_fields
    from parallax.models.huggingface.families import pieces_of, sizes_of
    from parallax.models.huggingface.tensors import shapes_of

    random = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    waiting: dict = {}

    def write():
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(waiting, Path(folder) / name)
        weight_map.update(dict.fromkeys(waiting, name))
        waiting.clear()

    total = 0
    for tensor, shape in shapes_of(pieces_of(config), sizes_of(config)).items():
        waiting[tensor] = random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        total += waiting[tensor].nbytes
        if sum(x.nbytes for x in waiting.values()) > 2e8:
            write()
    write()
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (Path(folder) / "model.safetensors.index.json").write_text(index)
    (Path(folder) / "config.json").write_text(json.dumps(to_fields(config)))
    return total


def resident_bytes() -> int:
    """Of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def load_one(folder: str, strategy_name: str, mesh_text: str, *, on_progress) -> dict:
    """Loads in this process, its memory sampled every millisecond."""
    import jax

    from parallax.meshes.mesh import MeshSpec
    from parallax.models import huggingface
    from parallax.spmd import ShardedTransformer
    from parallax.strategies import build
    from parallax.workload import Workload

    strategy = build(strategy_name, MeshSpec.parse(mesh_text))
    program = ShardedTransformer(huggingface.read_config(folder), strategy, Workload(16, 64))
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    jax.block_until_ready(jax.device_put(1, mesh.devices.flat[0]))
    import safetensors  # noqa: F401 -- its code is no weight

    level, peak, done = resident_bytes(), [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            peak[0] = max(peak[0], resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    params = huggingface.load(folder, program, mesh)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    placed = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
    return {
        "placed_bytes": placed, "peak_bytes": peak[0] - level,
        "ratio": round((peak[0] - level) / placed, 4), "seconds": round(seconds, 2),
    }  # fmt: skip


def main() -> None:
    """Runs all strategies and prints a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--out", default=None)
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES))
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        config = model(arguments.gb)
        size = run_in_child(make_folder, folder, config, environment=cpu_environment(1))
        print(f"{size / 1e9:.3f} GB, {config.num_layers} layers, bfloat16")
        for name in arguments.strategies:
            found[name] = run_in_child(
                load_one, folder, name, STRATEGIES[name], environment=cpu_environment(16)
            )
            print(name, found[name], flush=True)
    if arguments.out:
        record = {"folder_bytes": size, "devices": 16, "strategies": found}
        Path(arguments.out).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
