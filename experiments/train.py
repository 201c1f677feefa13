r"""Train a model under any partitioning strategy; stop, and resume under another one.

  parallax train --model=ring_sp --small --data=FILE.txt --workdir=runs/one --virtual \
      --strategy=tensor_pipeline --steps=200 --batch=16 --seq_len=128 --learning_rate=3e-3
  parallax train ... --workdir=runs/one --strategy=ring_sequence --steps=400   (goes on at 200)
  parallax train --model=FOLDER --data=tokens.npy --workdir=runs/two --strategy=fsdp \
      --batch=32 --seq_len=1024 --optimizer=lion --moment_dtype=bfloat16
  parallax train --model=FOLDER --data=tokens.npy --workdir=runs/three --batch=32 \
      --strategy=layerwise+data_parallel --mesh=stage=4,data=2 --microbatches=16 \
      --schedule=1f1b --shard_weights=auto
  parallax generate --model=runs/one --prompt="def " --strategy=layerwise --mesh=stage=2 --virtual

FOLDER holds published weights (config.json, *.safetensors, tokenizer.json) to start from. Data are
text files, or tokens in .npy (a row of integers) or .bin (uint16) files. Every optimizer has a
warmup, cosine decay and clipping. Parameters are float32, and moments too unless --moment_dtype
says otherwise; a run resumes with the optimizer and dtypes it was saved with. Checkpoints are
written while training goes on. Ctrl-C or SIGTERM saves and exits after the current step; the same
command resumes from there.

If it does not fit in memory: --microbatches=... for less of the batch at a time; --shard_optimizer
or --shard_weights=auto to split state or weights over devices that hold the same;
--schedule=1f1b where there are pipeline stages; --moment_dtype=bfloat16. None of these but the
last changes the losses. With room to spare, --remat=none or --gather=step saves time.

Hardware: the devices at hand; with --virtual, virtual CPU devices.
Result: in --workdir, run.json (what ran), metrics.jsonl, TensorBoard event files and checkpoints.
Exit status: 0 done, or stopped by SIGTERM and saved; 130 stopped by Ctrl-C and saved; 2 bad input,
or a loss that is not finite; 3 with --distributed: another process was lost, or they did not meet.
"""

import signal
import sys
import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from parallax.distributed.processes import process_count
from parallax.experiments.devices import use_devices
from parallax.experiments.flags import Command
from parallax.experiments.launch import INTERRUPTED, said_s
from parallax.report.words import counted
from parallax.requests import shared
from parallax.requests.option import nested, option
from parallax.requests.processes import ProcessesRequest
from parallax.requests.train import TrainRequest


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    saves_on_sigterm: ClassVar[bool] = True

    request: TrainRequest = nested(TrainRequest)
    optimizer: str = option(
        "adamw",
        "Rule of the updates. adamw: two moments per weight. lion: one moment, and updates of one "
        "size, so a smaller learning rate. muon: orthogonalises each layer matrix's momentum, one "
        "moment; adamw for tables, the unembedding, norms and biases.",
        "choice", choices=("adamw", "lion", "muon"),
    )  # fmt: skip
    learning_rate: float | None = option(
        None,
        "Learning rate at the end of the warmup. Unset: 0.0003, or 0.0001 for lion.",
        "number",
    )
    warmup_steps: int = option(
        20,
        "Steps in which the learning rate rises from 0; a cosine takes it down to a tenth after "
        "that.",
        "whole", unit="steps", at_least=0,
    )  # fmt: skip
    weight_decay: float | None = option(
        None,
        "Weight decay of matrices and tables; norms and biases have none. Unset: 0.1, or 0.3 for "
        "lion.",
        "number",
    )
    clip_norm: float = option(
        1.0, "Largest global L2 norm of the gradients; 0: no clipping.", "number"
    )
    moment_dtype: str | None = option(
        None,
        "Dtype in which the optimizer's moments are kept between steps: bfloat16 halves their "
        "memory, and rounds them to 3 digits after each step, which computes in the parameters' "
        "dtype. Unset: the parameters' dtype.",
        "choice", choices=("float32", "bfloat16"),
    )  # fmt: skip
    log_every: int = option(
        10,
        "Steps between printed lines where there is no terminal.",
        "whole",
        unit="steps",
        at_least=1,
    )
    virtual: bool = shared.virtual()
    processes: ProcessesRequest = nested(ProcessesRequest)


def main(flags: Flags) -> int:
    """Train the model that the flags ask for."""
    request = flags.request
    use_devices(request.strategy, request.mesh, flags.virtual, request.dtype)
    from parallax.engine.train import run_training

    if request.dtype == "float64":
        request = replace(request, param_dtype="float64")
    stop = _StopOnSignal()
    with _Shown(request.steps, flags.log_every) as shown:
        run = run_training(
            request,
            chosen_optimizer(flags),
            on_step=shown.step,
            on_progress=shown.line,
            should_stop=lambda: stop.asked_by is not None,
        )
    said = "done" if run.finished else f"stopped; {kept(flags)}"
    print(
        f"{said}. Step {run.last_step}, loss {run.losses[-1]:.4f}; "
        f"{counted(len(run.losses), 'step')} in "
        f"{run.seconds:.1f} s, compiled in {run.compile_s:.1f} s. In {run.folder}: run.json, "
        "metrics.jsonl, TensorBoard's events, checkpoints."
    )
    stopped = stop.asked_by == signal.SIGINT and not run.finished
    return INTERRUPTED if stopped else 0


def chosen_optimizer(flags: Flags) -> Any:
    """Return the settings of the optimizer; what is unset has the optimizer's own value."""
    from parallax.engine.optimizer import OPTIMIZERS

    names = ("learning_rate", "warmup_steps", "weight_decay", "clip_norm", "moment_dtype")
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    return OPTIMIZERS[flags.optimizer](**given)


def kept(flags: Flags) -> str:
    """Return what an interrupted run leaves: the newest checkpoint, and how to resume."""
    from parallax.engine.checkpoint import Checkpoints

    with Checkpoints(flags.request.workdir) as checkpoints:
        steps = checkpoints.steps()
    if not steps:
        return f"no checkpoint is in {flags.request.workdir}; the same command starts over"
    return (
        f"step {steps[-1]} is saved in {flags.request.workdir}; the same command resumes from there"
    )


class _StopOnSignal:
    """A stop request by Ctrl-C or SIGTERM; a second Ctrl-C interrupts at once.

    SIGTERM to one of several processes is JAX's, which tells the others.
    """

    def __init__(self):
        self.asked_by: int | None = None
        numbers = (signal.SIGINT, signal.SIGTERM) if process_count() == 1 else (signal.SIGINT,)
        for number in numbers:
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        self.asked_by = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Shown:
    """Progress on standard error: a bar on a terminal, lines elsewhere."""

    def __init__(self, steps: int, log_every: int):
        self.steps, self.log_every = steps, log_every
        self._began: tuple[int, float] | None = (
            None  # the first step of this run, and when it ended
        )
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task("starting", total=steps)

    def __enter__(self) -> "_Shown":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar:
            self._bar.stop()

    def line(self, line: str) -> None:
        """Show that something starts."""
        if self._bar:
            self._bar.console.print(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def step(self, done: int, figures: Any) -> None:
        """Show the figures of a step."""
        self._began = self._began or (done, time.monotonic())
        said = (
            f"loss {figures['loss']:.4f}  grad norm {figures['grad_norm']:.3f}  "
            f"{figures['tokens_per_s']:,.0f} tokens/s"
        )
        if self._bar:
            self._bar.update(self._task, completed=done, description=said)
        elif done % self.log_every == 0 or done == self.steps:
            left = self._left(done)
            print(f"step {done}/{self.steps}  {said}{left}", file=sys.stderr, flush=True)

    def _left(self, done: int) -> str:
        assert self._began is not None
        first, began = self._began
        if not first < done < self.steps:
            return ""
        seconds = (time.monotonic() - began) / (done - first) * (self.steps - done)
        return f"  about {said_s(seconds)} left"
