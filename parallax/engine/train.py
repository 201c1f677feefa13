"""Training under a strategy, on the devices of all processes; a run can resume under another."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from parallax.distributed.agreement import together
from parallax.distributed.processes import is_first
from parallax.engine.checkpoint import Checkpoints
from parallax.engine.metrics import Metrics, NoMetrics
from parallax.engine.optimizer import Adamw, OptimizerSettings
from parallax.engine.run_folder import held, write_run
from parallax.engine.training_loop import Figures, Loop, TrainingDivergedError
from parallax.engine.training_setup import (
    Line,
    Optimizer,
    SetUp,
    compile_step,
    recorded,
    set_up,
    start,
)
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import DType, ModelConfig
from parallax.models.new_folder import check_can_be_made
from parallax.parallel.layer_parts import ScheduleName
from parallax.parallel.remat import Remat
from parallax.parallel.sharded_weights import Gather
from parallax.programs.training import TrainState
from parallax.requests.train import TrainRequest
from parallax.strategy import Strategy

__all__ = ["Optimizer", "TrainingDivergedError", "TrainingRun", "run_training", "train"]


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
    workdir, steps = Path(request.workdir), request.steps
    together(
        f"the folder {workdir}",
        lambda: check_can_be_made(workdir, "workdir") if is_first() else None,
    )
    setup = set_up(request, optimizer, on_progress)
    with held(workdir, on_progress), Checkpoints(workdir, request.keep) as checkpoints:
        state, first = start(checkpoints, setup, request.seed, on_progress)
        if first >= steps:
            raise ValueError(
                f"{workdir}: {first} steps are done, {steps} are asked for. Use more steps, or "
                "another workdir."
            )
        on_progress("compiling the training step")
        compiled, compile_s = compile_step(setup, state)
        with ExitStack() as files:

            def open_files() -> Metrics | NoMetrics:
                if not is_first():
                    return NoMetrics()
                write_run(workdir, _run(request, setup, optimizer))
                return files.enter_context(Metrics(workdir, first))

            metrics = together(f"the files in {workdir}", open_files)
            is_ours = isinstance(optimizer, OptimizerSettings)
            schedule = optimizer.schedule(steps) if is_ours else None
            loop = Loop(compiled, schedule, setup.workload, metrics, on_step)

            def save(done: int, state: TrainState) -> None:
                meta = {"position": setup.position, "iterator": setup.batches.position}
                meta["optimizer"] = recorded(optimizer)
                checkpoints.save(done, setup.step, state, meta)
                on_progress(f"step {done}: saving")

            def asked() -> bool:
                checkpoints.check()
                return should_stop()

            last = loop.run(state, setup.batches, first, steps, request.save_every, save, asked)
    return TrainingRun(
        workdir, first, last, tuple(loop.losses), loop.seconds, compile_s, last == steps
    )


def _run(request: TrainRequest, setup: SetUp, optimizer: Optimizer) -> dict[str, Any]:
    """Return what run.json holds: what runs, and what to pass to run it again."""
    config, model = setup.sharded.config, request.model
    return {
        "model": config.name if isinstance(model, ModelConfig) else str(model),
        "model_config": config.to_dict(),
        "weights": None if setup.folder is None else str(setup.folder),
        "strategy": setup.sharded.strategy.to_dict(),
        "data": setup.position["data"],
        "optimizer": recorded(optimizer),
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
