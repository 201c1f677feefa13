"""Training under a strategy, on the devices at hand: resumable, and resumable under another one."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from parallax.codec import encode
from parallax.engine.checkpoint import Checkpoints
from parallax.engine.data import Batches, read_files
from parallax.engine.metrics import Metrics
from parallax.engine.optimizer import Adamw
from parallax.engine.weights import find_tokenizer, load_params
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import DType, ModelConfig
from parallax.naming import RUN_FILE, resolve_model, resolve_strategy
from parallax.parallel.split import Remat
from parallax.spmd import ShardedTransformer
from parallax.strategy import Strategy
from parallax.training import TrainState, TrainStep
from parallax.workload import Workload

Line = Callable[[str], None]
Figures = Mapping[str, float]


class TrainingDivergedError(ValueError):
    """The loss or the gradients are not finite any more; nothing of that step was saved."""


@dataclass(frozen=True)
class TrainingRun:
    """What `train` did.

    Attributes:
      folder: of the run: run.json, metrics.jsonl, TensorBoard's events, checkpoints.
      first_step, last_step: steps done before and after.
      losses: of the steps in between, in order.
      seconds: of all steps, compilation left out. compile_s: before that.
      finished: False if it was asked to stop before the last step.
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
    remat: Remat = "microbatch",
    optimizer: Adamw | None = None,
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
    """Trains a model under a strategy; goes on where the folder's newest checkpoint ends.

    Args:
      model: a paper's name or a ModelConfig (random weights), or a folder of weights to start from:
        published ones, or another run's.
      data: files of text (tokenized by the model's tokenizer, or as bytes), .npy or .bin tokens.
      workdir: folder of the run. One that holds a checkpoint goes on from it, under this strategy.
      strategy, mesh: None is one device; without a mesh a named strategy fills the devices.
      steps: in all, those of earlier runs counted.
      batch, seq_len: sequences of a step over all devices, tokens of each.
      microbatches: gradient accumulation: pieces of a device's share of the batch, run one after
        the other; None is the strategy's own, else 1.
      remat: what the backward pass recomputes: "none", "microbatch" or "layer".
      optimizer: AdamW's settings.
      seed: of random weights and of the order of the data.
      save_every: steps between checkpoints; the last step is saved too. keep: newest that stay.
      dtype: of activations; None is the model's own. param_dtype: of parameters, gradients and
        moments.
      small: of a paper's model, the same shape at a laptop's width.
      on_step: called with (steps done, loss, grad_norm, learning_rate, tokens_per_s).
      on_progress: called with a line whenever something starts.
      should_stop: asked after each step; then the state is saved and the run ends.

    Returns:
      A TrainingRun.

    Raises:
      ValueError: anything unknown or that does not divide; a checkpoint of another model, batch or
        data; TrainingDivergedError where the loss is not finite.
    """
    optimizer = optimizer or Adamw()
    _positive(steps=steps, batch=batch, seq_len=seq_len, save_every=save_every, keep=keep)
    config, folder = resolve_model(model, dtype=dtype, small=small)
    chosen = resolve_strategy(strategy, mesh, len(jax.devices()))
    own = getattr(chosen.layers, "microbatches", None)
    workload = Workload(batch, seq_len, microbatches or own or 1)
    sharded = ShardedTransformer(config, chosen, workload)
    step = TrainStep(sharded, optimizer.build(steps), remat, param_dtype)
    here = chosen.mesh.build(jax.devices()[: chosen.mesh.size])
    files = read_files(data, config.vocab_size, find_tokenizer(config, folder))
    batches = Batches(files, batch, seq_len, seed, sharded.abstract_inputs(here)[0].sharding)
    position = {
        "batch": batch, "seq_len": seq_len, "seed": seed, "data": list(files.names),
        "windows": batches.windows,
    }  # fmt: skip
    workdir = Path(workdir)
    with Checkpoints(workdir, keep) as checkpoints:
        state, first = _start(checkpoints, step, here, folder, seed, batches, position, on_progress)
        if first >= steps:
            raise ValueError(
                f"{workdir}: {first} steps are done, {steps} are asked for. Use more steps, or "
                "another workdir."
            )
        _write_run(workdir, config, folder, chosen, optimizer, position, locals())
        with Metrics(workdir, first) as metrics:
            loop = _Loop(step, here, optimizer.schedule(steps), workload, metrics, on_step)

            def save(done: int, state: TrainState) -> None:
                meta = {"position": position, "iterator": batches.position}
                meta["optimizer"] = encode(optimizer)
                checkpoints.save(done, step, state, meta)
                on_progress(f"step {done}: saving")

            on_progress("compiling the training step")
            loop.compile(state)
            last = _run(loop, state, batches, first, steps, save_every, save, should_stop)
    return TrainingRun(
        workdir, first, last, tuple(loop.losses), loop.seconds, loop.compile_s, last == steps
    )


def _run(loop, state, batches, first, steps, save_every, save, should_stop) -> int:
    """Steps until the last, or until asked to stop. Returns steps done."""
    saved = first
    for done in range(first + 1, steps + 1):
        state = loop.step(state, next(batches), done)
        stop = should_stop()
        if stop or done == steps or done % save_every == 0:
            loop.check()  # what is saved is of finite steps only
            save(done, state)
            saved = done
        if stop:
            break
    loop.check()
    return saved


class _Loop:
    """Steps whose figures are looked at one step later: devices do not wait for the host."""

    def __init__(self, step: TrainStep, mesh, schedule, workload: Workload, metrics, on_step):
        self.train, self.mesh, self.schedule, self.metrics = step, mesh, schedule, metrics
        self.tokens, self.on_step = workload.tokens, on_step
        self.losses: list[float] = []
        self.seconds, self.compile_s = 0.0, 0.0
        self._pending: tuple[int, Any] | None = None
        self._last = 0.0
        self._compiled: Any = None

    def compile(self, state: TrainState) -> None:
        start = time.perf_counter()
        tokens = self.train.sharded.abstract_inputs(self.mesh)[0]
        options: Any = self.train.sharded.strategy.compiler_options
        if self.mesh.devices.flat[0].platform == "cpu":
            options = None  # they are for GPUs
        jitted = jax.jit(
            self.train.whole_step(self.mesh), donate_argnums=0,
            out_shardings=(self.train.shardings(self.mesh), None),
        )  # fmt: skip
        self._compiled = jitted.lower(state, tokens).compile(options)
        self.compile_s = time.perf_counter() - start
        self._last = time.perf_counter()

    def step(self, state: TrainState, tokens: jax.Array, done: int) -> TrainState:
        state, figures = self._compiled(state, tokens)
        self.check()
        self._pending = done, figures
        return state

    def check(self) -> None:
        """Looks at the figures of the newest step that was not looked at."""
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
                "goes on from the last checkpoint."
            )
        self.seconds += took
        self.losses.append(loss)
        said = {
            "loss": loss, "grad_norm": norm, "learning_rate": float(self.schedule(done - 1)),
            "tokens_per_s": self.tokens / took,
        }  # fmt: skip
        self.metrics.write(done, said)
        self.on_step(done, said)


def _start(
    checkpoints: Checkpoints, step: TrainStep, mesh, folder: Path | None, seed: int,
    batches: Batches, position: dict[str, Any], on_progress: Line,
) -> tuple[TrainState, int]:  # fmt: skip
    """The state to go on with, and how many steps it has seen."""
    sharded = step.sharded
    if checkpoints.steps():
        found = checkpoints.restore(step, mesh)
        then = found.meta["position"]
        if different := [n for n in position if then.get(n) != position[n]]:
            said = ", ".join(f"{n} {then.get(n)!r}, here {position[n]!r}" for n in different)
            raise ValueError(
                f"{checkpoints.folder}: the run there has other data: {said}. Use the same, or "
                "another workdir."
            )
        batches.seek(found.meta["iterator"])
        before = found.meta["strategy"]["name"]
        on_progress(f"going on from step {found.step}, saved under {before}")
        return found.state, found.step
    if folder is None:
        on_progress(f"random weights of {sharded.config.name}")
        return step.init(jax.random.key(seed), mesh), 0
    on_progress(f"weights of {folder}")
    wide = dataclasses.replace(sharded, config=sharded.config.replace(dtype=step.param_dtype))
    return step.start(load_params(folder, wide, mesh), mesh), 0


def _write_run(workdir, config, folder, strategy, optimizer, position, request) -> None:
    """run.json: what runs, and what to pass to run it again."""
    names = (
        "steps", "batch", "seq_len", "microbatches", "remat", "seed", "save_every", "keep",
        "dtype", "param_dtype", "small",
    )  # fmt: skip
    model = request["model"]
    run = {
        "model": config.name if isinstance(model, ModelConfig) else str(model),
        "model_config": config.to_dict(),
        "weights": None if folder is None else str(folder),
        "strategy": strategy.to_dict(),
        "data": position["data"],
        "optimizer": encode(optimizer),
        **{name: request[name] for name in names},
        "jax": jax.__version__,
    }  # fmt: skip
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / RUN_FILE).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def _positive(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
