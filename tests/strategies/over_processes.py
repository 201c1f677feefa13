"""Gradients, training steps, logits and tokens of strategies, on one process or over several.

  python -m tests.strategies.over_processes COORDINATOR PROCESSES INDEX FOLDER NAME...
"""

import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from parallax.engine.generate import Generator
from parallax.lenses.text import byte_tokens, read_text
from parallax.models.transformer import abstract_transformer
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainState, TrainStep
from parallax.strategies import build
from parallax.strategies import STRATEGIES as REGISTERED
from parallax.meshes.mesh import MeshSpec
from parallax.workload import Workload
from tests.strategies.cases import EXPERTS, SMALL

DEVICES, STEPS, NEW_TOKENS, SEQ_LEN = 16, 3, 32, 32
DENSE = SMALL.replace(name="dense", num_heads=16, num_kv_heads=16, d_model=64)
DEEP = DENSE.replace(name="deep", num_layers=16, d_ff=64)
MOE = EXPERTS.replace(name="experts", num_heads=16, num_kv_heads=16)
HYBRIDS = {
    "ring_sequence+tensor_pipeline": "seq=4,tensor=4",
    "layerwise+ring_sequence": "stage=2,seq=8",
    "data_parallel+two_level": "data=4,head_group=2,head_slice=2",
    "expert_parallel+data_parallel": "data=2,expert=8",
}


def case(name):
    """The model and the strategy of a name."""
    strategy = build(name, MeshSpec.parse(HYBRIDS[name]) if name in HYBRIDS else None, devices=16)
    if "expert" in name or "colocated" in name:
        return MOE, strategy
    return (DEEP if name == "layerwise" else DENSE), strategy


def keep_gradients():
    def init(params):
        return jax.tree.map(jnp.zeros_like, params)
    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, updates))


@functools.lru_cache
def drawn(config):
    """The model's parameters, drawn on this process's host: the same on all."""
    rng = np.random.default_rng(0)
    def draw(x):
        scale = 1.0 if x.ndim < 2 else x.shape[-2] ** -0.5
        return rng.standard_normal(x.shape) * scale + (x.ndim < 2)
    return jax.tree.map(draw, abstract_transformer(config)[1])


def put(shapes, params):
    """The state before the first step, made without compiling: AdamW starts at 0."""
    def place(x, value):
        return jax.make_array_from_callback(x.shape, x.sharding, lambda i: value[i])
    zeros = jax.tree.map(lambda x: place(x, np.zeros(x.shape, x.dtype)), shapes.opt_state)
    return TrainState(jax.tree.map(lambda x, v: place(x, np.asarray(v)), shapes.params, params), zeros)


def compute(config, strategy, say=lambda line: None):
    t0 = time.process_time()
    def lap(what):
        nonlocal t0
        now = time.process_time()
        say(f"    {what} {now - t0:.2f} s")
        t0 = now

    local = 16 // strategy.split().count("act_batch")
    load = Workload(16, SEQ_LEN, min(4, local))
    sharded = ShardedTransformer(config, strategy, load)
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    mesh = strategy.mesh.build(devices[: strategy.mesh.size])
    whole = NamedSharding(mesh, PartitionSpec())
    text = byte_tokens(read_text(None, 16 * SEQ_LEN)[0], 16, SEQ_LEN)
    tokens = np.asarray(text, np.int32)
    step = TrainStep(sharded, optax.chain(keep_gradients(), optax.adamw(1e-2)), "layer", "float64")
    start = put(step.abstract_state(mesh), sharded.shard(jax.tree.map(jnp.asarray, drawn(config))))
    lap("init")
    run = jax.jit(step.whole_step(mesh), out_shardings=(step.shardings(mesh), whole))
    inputs = sharded.abstract_inputs(mesh)[0]
    placed = jax.make_array_from_callback(tokens.shape, inputs.sharding, lambda i: tokens[i])
    run = run.lower(start, placed).compile()
    lap("compile step")
    state, losses, gradients = start, [], None
    for _ in range(STEPS):
        state, (loss, norm) = run(state, placed)
        losses.append(float(loss))
        gradients = state.opt_state[0] if gradients is None else gradients
    lap("three steps")
    logits = jax.jit(sharded.forward(mesh, "all"), out_shardings=whole)(start.params, placed)
    jax.block_until_ready(logits)
    lap("logits")
    everything = jax.jit(lambda *trees: tuple(map(sharded.unshard, trees)), out_shardings=whole)
    gradients, params = everything(gradients, state.params)
    lap("gather")
    out = {"losses": np.array(losses), "logits": np.asarray(logits)}
    for kind, tree in (("gradient", gradients), ("parameter", params)):
        for path, x in nnx.to_flat_state(tree):
            out[f"{kind} {'/'.join(map(str, path))}"] = np.asarray(x.get_value())
    prompts = [list(map(int, row[: 20 + n % 3])) for n, row in enumerate(tokens)]
    generator = Generator(config, strategy, start.params, mesh)
    found = generator(prompts, max_new_tokens=NEW_TOKENS)
    out["tokens"] = np.array([c.tokens for c in found.continuations])
    lap(f"tokens (compile {found.latency.compile_s:.2f})")
    return out


def one_program_for_all():
    """Programs are kept by what they compute, whatever processes the devices belong to."""
    from jax._src import cache_key
    cache_key._hash_accelerator_config = lambda h, *a, **k: None
    whole = cache_key._hash_serialized_compile_options
    cache_key._hash_serialized_compile_options = (
        lambda h, options, strip_device_assignment=False: whole(h, options, strip_device_assignment=True))


def main(coordinator, processes, index, folder, *names):
    processes, index = int(processes), int(index)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    if SHARE: one_program_for_all()
    if processes > 1:
        jax.config.update("jax_share_binary_between_hosts", SHARE)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, processes, index)
    for name in names or [*REGISTERED, *HYBRIDS]:
        begin = time.perf_counter()
        try:
            out = compute(*case(name), say=(print if index == 0 else lambda l: None))
        except Exception as e:
            import traceback
            traceback.print_exc()
            print(name, "FAILED", str(e)[:300], flush=True)
            if processes > 1: raise
            continue
        if index == 0:
            np.savez(Path(folder) / f"{name}.npz", **out)
            print(name, f"{time.perf_counter() - begin:.2f} s", flush=True)

import os
SHARE = os.environ.get("SHARE", "1") == "1"
if __name__ == "__main__":
    main(*sys.argv[1:])
