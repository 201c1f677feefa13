"""Measure memory and time of loading and saving a 1 GB folder over 16 virtual devices.

  python benchmarks/loading.py [--gb=1] [--out=benchmarks/cpu/loading.json]

Makes a synthetic Llama folder (bfloat16, random) in a temporary place; each strategy loads and
saves it in a process of its own. Hardware: any Linux machine with 20 GB of memory; under
ring_sequence every device holds the whole model. Result: the bytes that a strategy places on all
devices, including replicas; the peak memory of the process above its level before loading, and
their ratio; the same above its level before saving; seconds.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment, versions
from parallax.models.config import ModelConfig

STRATEGIES = {
    "tensor_pipeline": "stage=2,tensor=8",
    "two_level": "head_group=4,head_slice=4",
    "layerwise": "stage=16",
    "ring_sequence+tensor_pipeline": "seq=4,tensor=4",
    "ring_sequence": "seq=16",
}


def model(gb: float) -> ModelConfig:
    """A Llama of so many GB in bfloat16; its vocabulary makes up what whole layers leave."""
    width = 1024 if gb >= 0.5 else 256
    one = ModelConfig(
        "synthetic", 16, width, 16, 16, width // 16, width * 11 // 4, 16, mlp="gated",
        dtype="bfloat16", norm_epsilon=1e-6,
    )  # fmt: skip
    params, layer = gb * 5e8, one.num_params / 16
    layers = max(16, int(0.9 * params / layer) // 16 * 16)
    rest = params - one.replace(num_layers=layers).num_params
    return one.replace(
        num_layers=layers, vocab_size=16 + max(0, -(-int(rest) // (32 * width)) * 16)
    )


def make_folder(folder: str, config: ModelConfig, *, on_progress) -> int:
    """Save random weights layer by layer, and return their bytes."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from parallax.models.huggingface.configs import family_of, to_fields
    from parallax.models.huggingface.names import sizes_of
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
    for tensor, shape in shapes_of(
        list(family_of(config).tensors(config)), sizes_of(config)
    ).items():
        waiting[tensor] = random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        total += waiting[tensor].nbytes
        if sum(x.nbytes for x in waiting.values()) > 2e8:
            write()
    write()
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (Path(folder) / "model.safetensors.index.json").write_text(index)
    (Path(folder) / "config.json").write_text(json.dumps(to_fields(config)))
    return total


def resident_bytes(name: str) -> int:
    """Return resident bytes of this process: VmRSS is the current value, VmHWM the peak."""
    with open("/proc/self/status") as file:
        entry = next(line for line in file if line.startswith(f"{name}:"))
    return int(entry.split()[1]) * 1024


def load_one(folder: str, strategy_name: str, mesh_text: str, *, on_progress) -> dict:
    """Load and save in this process, whose peak memory the kernel records."""
    import jax
    import safetensors  # noqa: F401 -- imported early: its code is not part of the weights

    from parallax.meshes.mesh import MeshSpec
    from parallax.models import huggingface
    from parallax.programs.sharded_model import ShardedTransformer
    from parallax.strategies import build
    from parallax.workload import Workload

    strategy = build(strategy_name, MeshSpec.parse(mesh_text))
    program = ShardedTransformer(huggingface.read_config(folder), strategy, Workload(16, 64))
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    jax.block_until_ready(jax.device_put(1, mesh.devices.flat[0]))

    level, start = resident_bytes("VmRSS"), time.perf_counter()
    params = jax.block_until_ready(huggingface.load(folder, program, mesh))
    seconds, peak = time.perf_counter() - start, resident_bytes("VmHWM") - level
    placed = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
    found = {
        "placed_bytes": placed, "peak_bytes": peak, "ratio": round(peak / placed, 4),
        "seconds": round(seconds, 2),
    }  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    level, start = resident_bytes("VmRSS"), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        huggingface.save(f"{out}/saved", program, params)
    seconds, peak = time.perf_counter() - start, resident_bytes("VmHWM") - level
    return found | {"saving_peak_bytes": peak, "saving_seconds": round(seconds, 2)}


def main() -> None:
    """Run all strategies and print a line each."""
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
        record = {
            "folder_bytes": size, "devices": 16, "strategies": found, "versions": versions(),
            "machine": platform.machine(), "tag": "measured",
        }  # fmt: skip
        Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
