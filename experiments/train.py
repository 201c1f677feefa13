"""Train a model under any partitioning strategy; stop, and go on under another one.

  parallax train --model=ring_sp --small --data=FILE.txt --workdir=runs/one --virtual \
      --strategy=tensor_pipeline --steps=200 --batch=16 --seq_len=128 --learning_rate=3e-3
  parallax train ... --workdir=runs/one --strategy=ring_sequence --steps=400   (goes on at 200)
  parallax train --model=FOLDER --data=tokens.npy --workdir=runs/two --batch=32 --seq_len=1024
  parallax generate --model=runs/one --prompt="def " --strategy=layerwise --mesh=stage=2 --virtual

FOLDER holds published weights (config.json, *.safetensors, tokenizer.json) to start from. Data are
text files, .npy (a row of integers) or .bin (uint16) tokens. AdamW with warmup, cosine decay and
clipping; parameters and moments in float32; checkpoints beside the training. Ctrl-C or SIGTERM
saves and leaves; the same command goes on from there.

Hardware: the devices at hand; with --virtual, virtual CPU devices.
Result: in --workdir run.json (what ran), metrics.jsonl, TensorBoard's events, checkpoints.
Exit status: 0 done, or stopped and saved; 2 bad input, or a loss that is not finite.
"""

import signal
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from parallax.experiments import flags
from parallax.experiments.devices import use_devices

FLAGS = (
    flags.MODEL, flags.SMALL, flags.DATA, flags.WORKDIR, flags.STRATEGY, flags.MESH, flags.STEPS,
    flags.BATCH, flags.SEQ_LEN, flags.MICROBATCHES, flags.REMAT, flags.LEARNING_RATE,
    flags.WARMUP_STEPS, flags.WEIGHT_DECAY, flags.CLIP_NORM, flags.SEED, flags.SAVE_EVERY,
    flags.KEEP, flags.LOG_EVERY, flags.DTYPE, flags.VIRTUAL,
)  # fmt: skip
_BATCH, _SEQ_LEN = 16, 256


def main() -> int:
    """Trains what the flags ask for."""
    for flag, why in ((flags.MODEL, "a folder, or a paper's name"), (flags.DATA, "files"),
                      (flags.WORKDIR, "a folder for the run")):  # fmt: skip
        if not flag.value:
            raise ValueError(f"--{flag.name} is missing. Give {why}.")
    use_devices(flags.STRATEGY.value, flags.MESH.value, flags.VIRTUAL.value, flags.DTYPE.value)
    from parallax.engine.optimizer import Adamw
    from parallax.engine.train import train

    stop = _StopOnSignal()
    asked: dict[str, Any] = {
        name: flag.value
        for name, flag in (("model", flags.MODEL), ("data", flags.DATA),
                           ("workdir", flags.WORKDIR), ("remat", flags.REMAT),
                           ("dtype", flags.DTYPE))
    }  # fmt: skip
    with _Shown(flags.STEPS.value, flags.LOG_EVERY.value) as shown:
        run = train(
            **asked,
            strategy=flags.STRATEGY.value,
            mesh=flags.MESH.value,
            steps=flags.STEPS.value,
            batch=flags.BATCH.value or _BATCH,
            seq_len=flags.SEQ_LEN.value or _SEQ_LEN,
            microbatches=flags.MICROBATCHES.value,
            optimizer=Adamw(
                learning_rate=flags.LEARNING_RATE.value,
                warmup_steps=flags.WARMUP_STEPS.value,
                weight_decay=flags.WEIGHT_DECAY.value,
                clip_norm=flags.CLIP_NORM.value,
            ),
            seed=flags.SEED.value,
            save_every=flags.SAVE_EVERY.value,
            keep=flags.KEEP.value,
            param_dtype="float64" if flags.DTYPE.value == "float64" else "float32",
            small=flags.SMALL.value,
            on_step=shown.step,
            on_progress=shown.line,
            should_stop=lambda: stop.asked,
        )
    said = "done" if run.finished else "stopped and saved; the same command goes on"
    print(
        f"{said}: step {run.last_step}, loss {run.losses[-1]:.4f}; {len(run.losses)} steps in "
        f"{run.seconds:.1f} s, compiled in {run.compile_s:.1f} s. In {run.folder}: run.json, "
        "metrics.jsonl, TensorBoard's events, checkpoints."
    )
    return 0


class _StopOnSignal:
    """Set by Ctrl-C and SIGTERM; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Shown:
    """A bar on a terminal, lines elsewhere; on standard error."""

    def __init__(self, steps: int, log_every: int):
        self.steps, self.log_every = steps, log_every
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
        """Something starts."""
        if self._bar:
            self._bar.console.print(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def step(self, done: int, figures: Any) -> None:
        """A step's figures."""
        said = (
            f"loss {figures['loss']:.4f}  grad norm {figures['grad_norm']:.3f}  "
            f"{figures['tokens_per_s']:,.0f} tokens/s"
        )
        if self._bar:
            self._bar.update(self._task, completed=done, description=said)
        elif done % self.log_every == 0 or done == self.steps:
            print(f"step {done}/{self.steps}  {said}", file=sys.stderr, flush=True)
