"""What a strategy computes, in one process or over several: steps, gradients, logits, tokens.

Each of several processes runs, and process 0 writes FOLDER/NAME.npz for each name:

  python -m tests.strategies.over_processes PORT PROCESSES NUMBER FOLDER NAME...
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import parallax as px
from parallax.distributed.agreement import wait_for_all
from parallax.distributed.devices import check_every_process, ordered_devices
from parallax.distributed.processes import is_first
from parallax.distributed.values import on_host
from parallax.engine.generate import Generator
from parallax.lenses.text import byte_tokens, read_text
from parallax.lenses.verifying import draw
from parallax.meshes.mesh import MeshSpec
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainState, TrainStep
from parallax.strategies import STRATEGIES, build
from parallax.workload import Workload
from tests.strategies.cases import EXPERTS, SMALL

DEVICES, BATCH, SEQ_LEN = 16, 16, 32
STEPS, NEW_TOKENS, PROMPT = 3, 32, 20
DENSE = SMALL.replace(name="dense", num_heads=16, num_kv_heads=16)
DEEP = DENSE.replace(name="deep", num_layers=16, d_ff=64)  # a layer for each of 16 stages
MIXTURE = EXPERTS.replace(name="mixture", num_heads=16, num_kv_heads=16)
HYBRIDS = {
    "ring_sequence+tensor_pipeline": "seq=4,tensor=4",
    "layerwise+ring_sequence": "stage=2,seq=8",
    "data_parallel+two_level": "data=4,head_group=2,head_slice=2",
    "expert_parallel+data_parallel": "data=2,expert=8",
}
# Stages of unequal depth on fewer devices than there are.
TWELVE = "layerwise on 12"
ALL = (*STRATEGIES, *HYBRIDS)


def case(name):
    """The model and the strategy of a name."""
    if name == TWELVE:
        return DEEP, build("layerwise", MeshSpec.parse("stage=12"))
    mesh = MeshSpec.parse(HYBRIDS[name]) if name in HYBRIDS else None
    strategy = build(name, mesh, devices=DEVICES, node_size=8)
    if "expert" in name or "colocated" in name:
        return MIXTURE, strategy
    return (DEEP if name == "layerwise" else DENSE), strategy


def compute(config, strategy):
    """Losses of three steps, gradients of the first, parameters after the last, logits, tokens."""
    local = BATCH // strategy.split().count("act_batch")
    sharded = ShardedTransformer(config, strategy, Workload(BATCH, SEQ_LEN, min(4, local)))
    mesh = strategy.mesh.build(ordered_devices()[: strategy.mesh.size])
    check_every_process(mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    tokens = byte_tokens(read_text(None, BATCH * SEQ_LEN)[0], BATCH, SEQ_LEN).astype(np.int32)
    placed = _place(tokens, sharded.abstract_inputs(mesh)[0].sharding)

    # The training step itself, whose optimizer also keeps the gradients that it is given.
    optimizer = optax.chain(_keep_gradients(), optax.adamw(1e-2))
    step = TrainStep(sharded, optimizer, param_dtype="float64")
    start = _start(step.abstract_state(mesh), sharded.shard(_drawn(config)))
    run = _compiled(step.whole_step(mesh), (step.shardings(mesh), whole), start, placed)
    state, losses, gradients = start, [], None
    for _ in range(STEPS):
        state, (loss, _) = run(state, placed)
        losses.append(float(loss))
        gradients = state.opt_state[0] if gradients is None else gradients

    forward = _compiled(sharded.forward(mesh, "all"), whole, start.params, placed)
    found = {"losses": np.array(losses), "logits": on_host(forward(start.params, placed))}
    both = gradients, state.params
    unshard = _compiled(lambda *trees: tuple(map(sharded.unshard, trees)), whole, *both)
    for kind, tree in zip(("gradient", "parameter"), unshard(*both), strict=True):
        for path, x in nnx.to_flat_state(tree):
            found[f"{kind} {'/'.join(map(str, path))}"] = on_host(x.get_value())

    prompts = [row[: PROMPT - n % 3].tolist() for n, row in enumerate(tokens)]
    made = Generator(config, strategy, start.params, mesh)(prompts, max_new_tokens=NEW_TOKENS)
    return found | {"tokens": np.array([c.tokens for c in made.continuations])}


def _compiled(function, shardings, *arguments):
    """Compile, and wait for all: the first collective gives up on a process after 30 s."""
    compiled = jax.jit(function, out_shardings=shardings).lower(*arguments).compile()
    wait_for_all("compiling")
    return compiled


@functools.lru_cache
def _drawn(config):
    return draw(config)


def _keep_gradients():
    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates, state, params=None):
        return updates, updates

    return optax.GradientTransformation(init, update)


def _start(shapes, params):
    """Return the state before the first step: AdamW's own starts at 0."""
    zeros = jax.tree.map(lambda x: _place(np.zeros(x.shape, x.dtype), x.sharding), shapes.opt_state)
    held = jax.tree.map(lambda x, w: _place(np.asarray(w), x.sharding), shapes.params, params)
    return TrainState(held, zeros)


def _place(x, sharding):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _compile_once():
    """Let process 0 compile and the others load, and a program serve any number of processes.

    JAX can do so, but on CPUs its key of a program holds this process's number and the device
    numbers: the others would wait for ever. What is compiled depends on neither.
    """
    from jax._src import cache_key

    hashed = cache_key._hash_serialized_compile_options
    cache_key._hash_accelerator_config = lambda *_: None
    cache_key._hash_serialized_compile_options = lambda hash_obj, options, **_: hashed(
        hash_obj, options, strip_device_assignment=True
    )
    jax.config.update("jax_share_binary_between_hosts", True)
    jax.config.update("jax_share_binary_between_hosts_timeout_ms", 120_000)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def main(port, processes, number, folder, *names):
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", DEVICES // int(processes))
    px.initialize(f"localhost:{port}", int(processes), int(number))
    _compile_once()
    for name in names:
        found = compute(*case(name))
        if is_first():
            with (Path(folder) / f"{name}.npz").open("wb") as file:
                np.savez(file, allow_pickle=False, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
