"""Training under a strategy, on the devices at hand; a run can resume under another strategy."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from parallax.codec import encode
from parallax.engine.checkpoint import Checkpoints
from parallax.engine.data import Batches, read_files
from parallax.engine.metrics import Metrics
from parallax.engine.optimizer import Adamw, OptimizerSettings
from parallax.engine.weights import find_tokenizer, load_params
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import DType, ModelConfig
from parallax.parallel.layer_parts import ScheduleName
from parallax.parallel.remat import Remat
from parallax.parallel.sharded_weights import Gather
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainState, TrainStep
from parallax.requests.naming import RUN_FILE, resolve_model, resolve_strategy
from parallax.requests.train import TrainRequest
from parallax.strategy import Strategy
from parallax.workload import Workload

Line = Callable[[str], None]
Figures = Mapping[str, float]
Optimizer = OptimizerSettings | optax.GradientTransformation


class TrainingDivergedError(ValueError):
    """The error for a loss or gradients that are not finite; that step is not saved."""


@dataclass(frozen=True)
class TrainingRun:
    """The record of a call of `train`.

    Attributes:
      folder: the run's folder: run.json, metrics.jsonl, TensorBoard's events, checkpoints.
      first_step, last_step: steps done before and after.
      losses: the losses of the steps in between, in order.
      seconds: time of all steps, compilation excluded.
      compile_s: time of compilation before the first step.
      finished: False if the run was asked to stop before the last step.
    """

    folder: Path
    first_step: int
    last_step: int
    losses: tuple[float, ...]
    seconds: float
    compile_s: float
    finished: bool


def train(
    model: str | Path | ModelConfig,
    data: Sequence[str | Path],
    workdir: str | Path,
    *,
    strategy: str | Strategy | None = None,
    mesh: str | MeshSpec | None = None,
    steps: int = 100,
    batch: int = 16,
    seq_len: int = 256,
    microbatches: int | None = None,
    remat: Remat = "layer",
    shard_weights: str | Sequence[str] | None = None,
    gather: Gather | None = None,
    shard_optimizer: str | Sequence[str] | None = None,
    schedule: ScheduleName | None = None,
    virtual_stages: int | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    save_every: int = 100,
    keep: int = 3,
    dtype: DType | None = None,
    param_dtype: DType = "float32",
    small: bool = False,
    on_step: Callable[[int, Figures], None] = lambda step, figures: None,
    on_progress: Line = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingRun:
    """Train a model under a strategy, from the folder's newest checkpoint if there is one.

    Args:
      model: a paper's name or a ModelConfig (random weights), or a folder of weights to start from,
        published ones or another run's.
      data: files of text (tokenized by the model's tokenizer, or as bytes), .npy or .bin tokens.
      workdir: the run's folder. If it holds a checkpoint, the run resumes from it.
      strategy, mesh: None is one device; without a mesh a named strategy fills the devices.
      steps: the total number of steps, those of earlier runs included.
      batch, seq_len: sequences per step over all devices, and tokens of each.
      microbatches: gradient accumulation: pieces of a device's share of the batch, run one after
        another; None takes the strategy's own number, else 1.
      remat: what the backward pass recomputes: "none", "attention" or "layer".
      shard_weights: mesh axes over which weights are sharded, among those that split the tokens, as
        a list or joined by commas; "auto" is all of these.
      gather: when sharded weights are gathered: "layer" or "step".
      shard_optimizer: mesh axes over which the optimizer's state is sharded too (ZeRO-1).
      schedule, virtual_stages: the order of passes in a pipeline; see `Pipeline`.
      optimizer: settings (`Adamw`, `Lion`, `Muon`; None is AdamW's), or any optax transformation
        that `TrainStep` takes, with its own schedule. run.json then holds its repr alone, which
        cannot make it again, and figures lack the learning rate; a run resumes if the saved state
        has the arrays, shapes and dtypes of the transformation given.
      seed: seed of random weights and of the order of the data.
      save_every: steps between checkpoints; the last step is saved too.
      keep: how many of the newest checkpoints to keep.
      dtype: the dtype of activations; None takes the model's own.
      param_dtype: the dtype of parameters and gradients, and of moments unless the optimizer's
        settings say otherwise.
      small: takes a paper's model at a laptop's width, with the same shape.
      on_step: called with the steps done and the step's figures: loss, grad_norm, learning_rate
        and tokens_per_s.
      on_progress: called with a line whenever something starts.
      should_stop: called after each step; if it returns True, the state is saved and the run ends.

    Returns:
      A TrainingRun.

    Raises:
      ValueError: a name is unknown, a size does not divide, or the checkpoint has another model,
        optimizer, dtype, batch or data.
      TrainingDivergedError: the loss or the gradients are not finite.
    """
    request = TrainRequest(
        model=model,
        small=small,
        data=data,
        workdir=workdir,
        strategy=strategy,
        mesh=mesh,
        steps=steps,
        batch=batch,
        seq_len=seq_len,
        microbatches=microbatches,
        remat=remat,
        shard_weights=shard_weights,
        gather=gather,
        shard_optimizer=shard_optimizer,
        schedule=schedule,
        virtual_stages=virtual_stages,
        seed=seed,
        save_every=save_every,
        keep=keep,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return run_training(
        request,
        optimizer or Adamw(),
        on_step=on_step,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def run_training(
    request: TrainRequest,
    optimizer: Optimizer,
    *,
    on_step: Callable[[int, Figures], None],
    on_progress: Line,
    should_stop: Callable[[], bool],
) -> TrainingRun:
    """Train what a request asks for, as `train` does."""
    request.check()
    _check_optimizer(optimizer)
    setup = _set_up(request, optimizer)
    workdir, steps = Path(request.workdir), request.steps
    with Checkpoints(workdir, request.keep) as checkpoints:
        state, first = _start(checkpoints, setup, request.seed, on_progress)
        if first >= steps:
            raise ValueError(
                f"{workdir}: {first} steps are done, {steps} are asked for. Use more steps, or "
                "another workdir."
            )
        on_progress("compiling the training step")
        compiled, compile_s = _compile(setup, state)
        _write_run(request, setup, optimizer)
        is_ours = isinstance(optimizer, OptimizerSettings)
        schedule = optimizer.schedule(steps) if is_ours else None
        with Metrics(workdir, first) as metrics:
            loop = _Loop(compiled, schedule, setup.workload, metrics, on_step)

            def save(done: int, state: TrainState) -> None:
                meta = {"position": setup.position, "iterator": setup.batches.position}
                meta["optimizer"] = _recorded(optimizer)
                checkpoints.save(done, setup.step, state, meta)
                on_progress(f"step {done}: saving")

            last = _run(
                loop, state, setup.batches, first, steps, request.save_every, save, should_stop
            )
    return TrainingRun(
        workdir, first, last, tuple(loop.losses), loop.seconds, compile_s, last == steps
    )


@dataclass(frozen=True)
class _SetUp:
    """Everything that a training run needs.

    Attributes:
      step: the training step of the model under its strategy.
      mesh: the devices.
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
        return self.step.sharded


def _set_up(request: TrainRequest, optimizer: Optimizer) -> _SetUp:
    config, folder = resolve_model(request.model, dtype=request.dtype, small=request.small)
    strategy = resolve_strategy(request.strategy, request.mesh, len(jax.devices()))
    options = request.training_options()
    strategy = options.apply(strategy)
    options.check([strategy])
    own = getattr(strategy.layers, "microbatches", None)
    workload = Workload(request.batch, request.seq_len, request.microbatches or own or 1)
    sharded = ShardedTransformer(config, strategy, workload)
    is_ours = isinstance(optimizer, OptimizerSettings)
    transformation = optimizer.build(request.steps) if is_ours else optimizer
    step = TrainStep(sharded, transformation, request.remat, request.param_dtype)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    files = read_files(request.data, config.vocab_size, find_tokenizer(config, folder))
    sharding = sharded.abstract_inputs(mesh)[0].sharding
    batches = Batches(files, request.batch, request.seq_len, request.seed, sharding)
    position = {
        "batch": request.batch, "seq_len": request.seq_len, "seed": request.seed,
        "data": list(files.names), "windows": batches.windows,
    }  # fmt: skip
    return _SetUp(step, mesh, workload, folder, batches, position)


def _run(loop, state, batches, first, steps, save_every, save, should_stop) -> int:
    """Run steps until the last, or until asked to stop; return the number of steps saved."""
    saved = first
    for done in range(first + 1, steps + 1):
        state = loop.step(state, next(batches), done)
        stop = should_stop()
        if stop or done == steps or done % save_every == 0:
            loop.check()  # only states of finite steps are saved
            save(done, state)
            saved = done
        if stop:
            break
    loop.check()
    return saved


def _compile(setup: _SetUp, state: TrainState) -> tuple[Any, float]:
    """Return the compiled training step, and the seconds that it took."""
    start = time.perf_counter()
    tokens = setup.sharded.abstract_inputs(setup.mesh)[0]
    options: Any = setup.sharded.strategy.compiler_options
    if setup.mesh.devices.flat[0].platform == "cpu":
        options = None  # the compiler options are for GPUs
    jitted = jax.jit(
        setup.step.whole_step(setup.mesh), donate_argnums=0,
        out_shardings=(setup.step.shardings(setup.mesh), None),
    )  # fmt: skip
    compiled = jitted.lower(state, tokens).compile(options)
    return compiled, time.perf_counter() - start


class _Loop:
    """A loop that reads metrics one step later, so that devices do not wait for the host."""

    def __init__(self, compiled: Any, schedule, workload: Workload, metrics, on_step):
        self.schedule, self.metrics = schedule, metrics
        self.tokens, self.on_step = workload.tokens, on_step
        self.losses: list[float] = []
        self.seconds = 0.0
        self._pending: tuple[int, Any] | None = None
        self._compiled, self._last = compiled, time.perf_counter()

    def step(self, state: TrainState, tokens: jax.Array, done: int) -> TrainState:
        state, figures = self._compiled(state, tokens)
        self.check()
        self._pending = done, figures
        return state

    def check(self) -> None:
        """Read the metrics of the last step, if they were not read yet; raise if not finite."""
        if self._pending is None:
            return
        (done, figures), self._pending = self._pending, None
        loss, norm = (float(x) for x in jax.device_get(figures))
        now = time.perf_counter()
        took, self._last = now - self._last, now
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(
                f"step {done}: loss {loss}, gradient norm {norm}. That step was not saved. Lower "
                "the learning rate or the clipping norm, or use a longer warmup, and run again: it "
                "resumes from the last checkpoint."
            )
        self.seconds += took
        self.losses.append(loss)
        said = {"loss": loss, "grad_norm": norm}
        if self.schedule is not None:
            said["learning_rate"] = float(self.schedule(done - 1))
        said["tokens_per_s"] = self.tokens / took
        self.metrics.write(done, said)
        self.on_step(done, said)


def _start(
    checkpoints: Checkpoints, setup: _SetUp, seed: int, on_progress: Line
) -> tuple[TrainState, int]:
    """Return the state to start from, and the number of its steps."""
    step, mesh, sharded = setup.step, setup.mesh, setup.sharded
    if checkpoints.steps():
        checkpoint = checkpoints.restore(step, mesh)
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


def _write_run(request: TrainRequest, setup: _SetUp, optimizer: Optimizer) -> None:
    """Write run.json: what runs, and what to pass to run it again."""
    config, model = setup.sharded.config, request.model
    run = {
        "model": config.name if isinstance(model, ModelConfig) else str(model),
        "model_config": config.to_dict(),
        "weights": None if setup.folder is None else str(setup.folder),
        "strategy": setup.sharded.strategy.to_dict(),
        "data": setup.position["data"],
        "optimizer": _recorded(optimizer),
        "steps": request.steps,
        "batch": request.batch,
        "seq_len": request.seq_len,
        "microbatches": request.microbatches,
        "remat": request.remat,
        "seed": request.seed,
        "save_every": request.save_every,
        "keep": request.keep,
        "dtype": request.dtype,
        "param_dtype": request.param_dtype,
        "small": request.small,
        "jax": jax.__version__,
    }
    workdir = Path(request.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / RUN_FILE).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def _recorded(optimizer: Optimizer) -> Any:
    """Return what files of a run hold of its optimizer: its settings, or the repr of another's."""
    if isinstance(optimizer, OptimizerSettings):
        return encode(optimizer)
    return {"repr": re.sub(r" at 0x[0-9a-f]+", "", repr(optimizer))}


def _check_optimizer(optimizer: Optimizer) -> None:
    if not (hasattr(optimizer, "init") or isinstance(optimizer, OptimizerSettings)):
        raise ValueError(
            f"optimizer: expected settings or an optax transformation, got {optimizer!r}. Use "
            "px.Adamw(learning_rate), px.Lion(...), px.Muon(...) or such as optax.adamw(3e-4)."
        )
