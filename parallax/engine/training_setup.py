"""What a training run needs before its first step: program, data, devices, state."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from parallax.codec import encode
from parallax.distributed.agreement import agree, together
from parallax.distributed.devices import check_every_process, node_notes, ordered_devices
from parallax.engine.checkpoint import Checkpoints
from parallax.engine.data import Batches, read_files
from parallax.engine.optimizer import OptimizerSettings
from parallax.engine.weights import find_tokenizer, load_params
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainState, TrainStep
from parallax.requests.naming import resolve_model, resolve_strategy
from parallax.requests.train import TrainRequest
from parallax.strategies.dividing import sharded_over
from parallax.strategy import Strategy
from parallax.workload import Workload

Line = Callable[[str], None]
Optimizer = OptimizerSettings | optax.GradientTransformation


@dataclass(frozen=True)
class SetUp:
    """Everything that a training run needs.

    Attributes:
      step: the training step of the model under its strategy.
      mesh: the devices, of all processes.
      folder: weights to start from; None takes random ones.
      batches: the batches of the data.
      position: what has to be the same when a run resumes from a checkpoint.
    """

    step: TrainStep
    mesh: Mesh
    workload: Workload
    folder: Path | None
    batches: Batches
    position: dict[str, Any]

    @property
    def sharded(self) -> ShardedTransformer:
        """The model under its strategy."""
        return self.step.sharded


def set_up(request: TrainRequest, optimizer: Optimizer, on_progress: Line) -> SetUp:
    """Set up what a request asks for, the same on every process.

    Raises:
      ValueError: on all processes, for a bad request, data that one of them cannot read, a process
        without a device in the mesh, and requests, models, strategies or data that differ.
    """
    agree("training", _facts(request, optimizer))
    request.check()
    _check_optimizer(optimizer)
    devices = ordered_devices()
    setup = together("reading model and data", lambda: _set_up(request, optimizer, devices))
    check_every_process(setup.mesh)
    agree(
        "training",
        {
            "model": setup.sharded.config.to_dict(),
            "strategy": setup.sharded.strategy.to_dict(),
            "windows of the data": setup.batches.windows,
        },
    )
    for note in node_notes(setup.mesh):
        on_progress(note)
    return setup


def _set_up(request: TrainRequest, optimizer: Optimizer, devices: list[Any]) -> SetUp:
    config, folder = resolve_model(request.model, dtype=request.dtype, small=request.small)
    strategy = resolve_strategy(request.strategy, request.mesh, len(devices))
    options = request.training_options()
    strategy = options.apply(strategy)
    options.check([strategy])
    own = getattr(strategy.layers, "microbatches", None)
    workload = Workload(request.batch, request.seq_len, request.microbatches or own or 1)
    sharded = sharded_over(strategy, lambda one: ShardedTransformer(config, one, workload))
    is_ours = isinstance(optimizer, OptimizerSettings)
    transformation = optimizer.build(request.steps) if is_ours else optimizer
    step = TrainStep(sharded, transformation, request.remat, request.param_dtype)
    mesh = strategy.mesh.build(devices[: strategy.mesh.size])
    files = read_files(request.data, config.vocab_size, find_tokenizer(config, folder))
    sharding = sharded.abstract_inputs(mesh)[0].sharding
    batches = Batches(files, request.batch, request.seq_len, request.seed, sharding)
    position = {
        "batch": request.batch, "seq_len": request.seq_len, "seed": request.seed,
        "data": list(files.names), "windows": batches.windows,
    }  # fmt: skip
    return SetUp(step, mesh, workload, folder, batches, position)


def compile_step(setup: SetUp, state: TrainState) -> tuple[Any, float]:
    """Return the compiled training step, and the seconds that it took.

    It returns once all processes have it: the first collective then waits for nobody's compiler.
    """
    start = time.perf_counter()
    tokens = setup.sharded.abstract_inputs(setup.mesh)[0]
    options: Any = setup.sharded.strategy.compiler_options
    if setup.mesh.devices.flat[0].platform == "cpu":
        options = None  # the compiler options are for GPUs
    jitted = jax.jit(
        setup.step.whole_step(setup.mesh), donate_argnums=0,
        out_shardings=(setup.step.shardings(setup.mesh), None),
    )  # fmt: skip
    compiled = together(
        "compiling the training step", lambda: jitted.lower(state, tokens).compile(options)
    )
    return compiled, time.perf_counter() - start


def start(
    checkpoints: Checkpoints, setup: SetUp, seed: int, on_progress: Line
) -> tuple[TrainState, int]:
    """Return the state to start from, and the number of its steps; all processes call it.

    Raises:
      ValueError: the run's checkpoint or the weights cannot be taken.
    """
    step, mesh, sharded = setup.step, setup.mesh, setup.sharded
    if (newest := checkpoints.newest()) is not None:
        checkpoint = checkpoints.restore(step, mesh, newest)
        then, position = checkpoint.meta["position"], setup.position
        if different := [n for n in position if then.get(n) != position[n]]:
            said = ", ".join(f"{n} {then.get(n)!r}, here {position[n]!r}" for n in different)
            raise ValueError(
                f"{checkpoints.folder}: the run there has different data: {said}. Use the same, or "
                "another workdir."
            )
        setup.batches.seek(checkpoint.meta["iterator"])
        before = checkpoint.meta["strategy"]["name"]
        on_progress(f"resuming from step {checkpoint.step}, saved under {before}")
        return checkpoint.state, checkpoint.step
    if setup.folder is None:
        on_progress(f"random weights of {sharded.config.name}")
        return step.init(jax.random.key(seed), mesh), 0
    on_progress(f"weights of {setup.folder}")
    wide = dataclasses.replace(sharded, config=sharded.config.replace(dtype=step.param_dtype))
    return step.start(load_params(setup.folder, wide, mesh), mesh), 0


def recorded(optimizer: Optimizer) -> Any:
    """Return what files of a run hold of its optimizer: its settings, or the repr of another's."""
    if isinstance(optimizer, OptimizerSettings):
        return encode(optimizer)
    return {"repr": re.sub(r" at 0x[0-9a-f]+", "", repr(optimizer))}


def _facts(request: TrainRequest, optimizer: Optimizer) -> dict[str, Any]:
    """Return what has to be the same on all processes, as JSON."""
    fields = {f.name: _plain(getattr(request, f.name)) for f in dataclasses.fields(request)}
    return {**fields, "optimizer": recorded(optimizer), "float64": jax.config.jax_enable_x64}


def _plain(value: Any) -> Any:
    if isinstance(value, ModelConfig | Strategy):
        return value.to_dict()
    if isinstance(value, Path | MeshSpec):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    return [_plain(x) for x in value] if isinstance(value, list | tuple) else value


def _check_optimizer(optimizer: Optimizer) -> None:
    if not (hasattr(optimizer, "init") or isinstance(optimizer, OptimizerSettings)):
        raise ValueError(
            f"optimizer: expected settings or an optax transformation, got {optimizer!r}. Use "
            "px.Adamw(learning_rate), px.Lion(...), px.Muon(...) or such as optax.adamw(3e-4)."
        )
