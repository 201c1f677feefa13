"""The loop of training steps: metrics, saves, and a stop that all processes take at one step."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from parallax.distributed.stopping import stop_at
from parallax.distributed.values import on_host
from parallax.engine.metrics import Writer
from parallax.programs.training import TrainState
from parallax.workload import Workload

Figures = Mapping[str, float]
OnStep = Callable[[int, Figures], None]


class TrainingDivergedError(ValueError):
    """The error for a loss or gradients that are not finite; that step is not saved."""


class Loop:
    """A loop that reads metrics one step later, so that devices do not wait for the host.

    Args:
      compiled: the training step.
      schedule: learning rate by step, or None.
      workload: batch and length.
      metrics: where figures are written.
      on_step: called with the steps done and their figures.

    Attributes:
      losses: the losses of the steps read so far.
      seconds: the time of these steps.
    """

    def __init__(
        self, compiled: Any, schedule: Callable[[int], Any] | None, workload: Workload,
        metrics: Writer, on_step: OnStep,
    ):  # fmt: skip
        self.schedule, self.metrics = schedule, metrics
        self.tokens, self.on_step = workload.tokens, on_step
        self.losses: list[float] = []
        self.seconds = 0.0
        self._pending: tuple[int, Any] | None = None
        self._compiled, self._last = compiled, time.perf_counter()

    def run(
        self,
        state: TrainState,
        batches: Iterator[jax.Array],
        first: int,
        steps: int,
        save_every: int,
        save: Callable[[int, TrainState], None],
        should_stop: Callable[[], bool],
    ) -> int:
        """Run steps until the last, or until a process was asked to stop.

        Args:
          state: the state after `first` steps.
          batches: the batches of the following steps.
          first, steps: steps done, and steps in all.
          save_every: steps between saves.
          save: saves the state after a number of steps.
          should_stop: whether this process was asked to stop.

        Returns:
          The number of steps saved.
        """
        saved = first
        for done in range(first + 1, steps + 1):
            state = self._step(state, next(batches), done)
            stop = stop_at(done, should_stop())
            if stop or done == steps or done % save_every == 0:
                self._check()  # only states of finite steps are saved
                save(done, state)
                saved = done
            if stop:
                break
        self._check()
        return saved

    def _step(self, state: TrainState, tokens: jax.Array, done: int) -> TrainState:
        state, figures = self._compiled(state, tokens)
        self._check()
        self._pending = done, figures
        return state

    def _check(self) -> None:
        """Read the metrics of the last step, if they were not read yet; raise if not finite.

        They are the same numbers on all processes, and so is what follows from them.
        """
        if self._pending is None:
            return
        (done, figures), self._pending = self._pending, None
        loss, norm = (float(on_host(x)) for x in figures)
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
