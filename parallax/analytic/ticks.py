"""The ticks of a pipeline's training step, by their slowest action, without long tables."""

import functools
from typing import NamedTuple

from parallax.parallel.layer_parts import LayerPart, Pipeline
from parallax.parallel.schedules import ActionKind, ScheduleName, make_schedule

# Microbatches per stage of the longest table; more repeat its steady state.
_LONGEST = 4


class Ticks(NamedTuple):
    """The ticks of one training step on the stages of a pipeline.

    Stages wait for each other in every tick, which takes as long as its slowest action.

    Attributes:
      slowest: kind of action -> ticks of which it is the slowest.
      runs: kind of action -> ticks in which any stage runs it.
      bubble: idle ticks of a stage over its busy ones.
      in_flight: the most microbatches (chunks of them) of which a stage keeps something.
      chunks: virtual stages per stage.
    """

    slowest: dict[ActionKind, int]
    runs: dict[ActionKind, int]
    bubble: float
    in_flight: int
    chunks: int

    @property
    def parts(self) -> dict[str, ActionKind]:
        """The part of a step's trace that each kind of action runs.

        To compute the gradients of weights on their own, those of the inputs are computed again.
        """
        split: dict[str, ActionKind] = {"inputs tick": "backward", "backward tick": "weights"}
        whole: dict[str, ActionKind] = {"backward tick": "backward"}
        return {"forward tick": "forward", **(split if "weights" in self.slowest else whole)}


def ticks_of(layers: LayerPart, stages: int, microbatches: int) -> Ticks | None:
    """Return the ticks of the training step of a stack of layers; None without stages.

    Raises:
      ValueError: microbatches that the schedule cannot take.
    """
    if not isinstance(layers, Pipeline) or stages == 1:
        return None
    return _ticks(layers.schedule, stages, microbatches, layers.virtual_stages)


@functools.lru_cache(maxsize=4096)
def _ticks(name: ScheduleName, stages: int, microbatches: int, chunks: int) -> Ticks:
    turns = _LONGEST * stages
    if microbatches <= turns + stages:
        return _counted(name, stages, microbatches, chunks)
    rest = microbatches % stages  # interleaved schedules take whole turns of a microbatch per stage
    last, before = (_counted(name, stages, n + rest, chunks) for n in (turns, turns - stages))
    more = (microbatches - turns - rest) // stages

    def grown(a: dict[ActionKind, int], b: dict[ActionKind, int]) -> dict[ActionKind, int]:
        return {kind: a[kind] + more * (a[kind] - b[kind]) for kind in a}

    slowest = grown(last.slowest, before.slowest)
    actions = len(last.slowest) * chunks * microbatches
    return Ticks(
        slowest, grown(last.runs, before.runs), sum(slowest.values()) / actions - 1.0,
        last.in_flight + more * (last.in_flight - before.in_flight), chunks,
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _counted(name: ScheduleName, stages: int, microbatches: int, chunks: int) -> Ticks:
    schedule = make_schedule(name, stages, microbatches, chunks)
    slowest: dict[ActionKind, int] = dict.fromkeys(schedule.kinds, 0)
    runs: dict[ActionKind, int] = dict.fromkeys(schedule.kinds, 0)
    for row in schedule.rows:
        here = {action.kind for action in row if action is not None}
        kinds: list[ActionKind] = [kind for kind in schedule.kinds if kind in here]
        for kind in kinds:
            runs[kind] += 1
        slowest[kinds[-1]] += 1
    return Ticks(slowest, runs, schedule.bubble, schedule.peak_in_flight, chunks)
