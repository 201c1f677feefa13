"""Pipeline schedules of training as tables: what each stage does in each tick.

A table comes from the order in which each stage runs its actions: in a tick every stage runs its
next action if what that needs was done in earlier ticks, and is idle otherwise. Chunk c of stage s
holds group c S + s of the layers, where S is the number of stages; without virtual stages c is 0.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

ActionKind = Literal["forward", "backward", "weights"]
ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zb-h1", "1f1b-lockstep"]
ACTION_KINDS: tuple[ActionKind, ...] = get_args(ActionKind)
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


class Action(NamedTuple):
    """One stage's work on one microbatch in one tick.

    Attributes:
      kind: "forward"; "backward", the gradients of the input and of the weights, or of the input
        alone in a schedule that splits the two; "weights", then the gradients of the weights.
      microbatch: number of the microbatch.
      chunk: number of the virtual stage on this stage.
    """

    kind: ActionKind
    microbatch: int
    chunk: int = 0


Row = tuple[Action | None, ...]


@dataclass(frozen=True)
class Schedule:
    """A pipeline schedule of one training step.

    Attributes:
      name: name of the schedule.
      stages, microbatches: S and M.
      virtual_stages: chunks of layers per stage, v.
      rows: per tick, the action of each stage; None is idle.
    """

    name: ScheduleName
    stages: int
    microbatches: int
    virtual_stages: int
    rows: tuple[Row, ...]

    @property
    def ticks(self) -> int:
        """The number of ticks."""
        return len(self.rows)

    @property
    def splits_backward(self) -> bool:
        """Whether the gradients of the weights are actions of their own."""
        return self.name == "zb-h1"

    @property
    def kinds(self) -> tuple[ActionKind, ...]:
        """The kinds of its actions."""
        return ACTION_KINDS if self.splits_backward else ACTION_KINDS[:2]

    @property
    def groups(self) -> int:
        """The number of groups of layers, v S."""
        return self.virtual_stages * self.stages

    @property
    def actions_per_stage(self) -> int:
        """The number of ticks in which a stage is busy."""
        return len(self.kinds) * self.virtual_stages * self.microbatches

    @property
    def bubble(self) -> float:
        """The idle ticks of a stage as a share of its busy ones; every action takes one tick."""
        return self.ticks / self.actions_per_stage - 1.0

    @property
    def handoffs(self) -> int:
        """The activations handed from group to group; as many gradients are handed back."""
        return self.microbatches * (self.groups - 1)

    def in_flight(self, stage: int) -> int:
        """Return the most microbatches (chunks of them) that a stage keeps something of at once.

        Counted from the end of the forward until the last of their gradients is done.
        """
        held = most = 0
        last = self.kinds[-1]
        for row in self.rows:
            action = row[stage]
            if action is not None:
                held += (action.kind == "forward") - (action.kind == last)
                most = max(most, held)
        return most

    @property
    def peak_in_flight(self) -> int:
        """The most that any stage has in flight."""
        return max(self.in_flight(stage) for stage in range(self.stages))

    def group(self, stage: int, action: Action) -> int:
        """Return the group of layers that an action runs."""
        return action.chunk * self.stages + stage


@functools.lru_cache(maxsize=256)
def make_schedule(
    name: ScheduleName, stages: int, microbatches: int, virtual_stages: int = 1
) -> Schedule:
    """Make the table of a schedule.

    Args:
      name: "gpipe", all forwards, then all backwards; "1f1b", one forward and one backward in turn;
        "interleaved", the same with several chunks of layers per stage, in Megatron's order;
        "zb-h1", 1F1B with the gradients of weights moved into the bubble; "1f1b-lockstep", ticks in
        which all stages run forwards and ticks in which all run backwards in turn: as many as
        1F1B's, of which each takes as long as all of its stages where stages wait for each other
        in every tick, for nearly twice as many microbatches in flight.
      stages, microbatches: S and M, at least 1.
      virtual_stages: chunks per stage, more than 1 with "interleaved" and "1f1b-lockstep" alone.

    Raises:
      ValueError: an unknown name, or numbers that the schedule cannot have.

    Reference: Huang et al., "GPipe", 2019; Narayanan et al., "Efficient Large-Scale Language Model
      Training on GPU Clusters Using Megatron-LM", 2021; Qi et al., "Zero Bubble Pipeline
      Parallelism", 2023.
    """
    _check(name, stages, microbatches, virtual_stages)
    if name == "zb-h1":
        rows = _run(stages, 1, _zero_bubble(stages, microbatches))
    elif name == "1f1b-lockstep":
        rows = _lockstep(stages, microbatches, virtual_stages)
    else:
        order = {"gpipe": _gpipe, "1f1b": _one_f_one_b, "interleaved": _interleaved}[name]
        orders = [order(s, stages, microbatches, virtual_stages) for s in range(stages)]
        rows = _run(stages, virtual_stages, _in_order(orders))
    return Schedule(name, stages, microbatches, virtual_stages, rows)


def _check(name: str, stages: int, microbatches: int, virtual_stages: int) -> None:
    if name not in SCHEDULES:
        raise ValueError(f"make_schedule: {name!r} is none of {', '.join(SCHEDULES)}.")
    if min(stages, microbatches, virtual_stages) < 1:
        raise ValueError(
            f"make_schedule: expected at least 1 of each, got {stages} stages, {microbatches} "
            f"microbatches and {virtual_stages} virtual stages."
        )
    if name == "interleaved" and virtual_stages == 1:
        raise ValueError(
            "make_schedule: 'interleaved' got 1 virtual stage per stage. Use at least 2, or '1f1b'."
        )
    if name in ("gpipe", "1f1b", "zb-h1") and virtual_stages > 1:
        raise ValueError(
            f"make_schedule: '{name}' got {virtual_stages} virtual stages per stage. Use 1, or "
            "'interleaved'."
        )
    if virtual_stages > 1 and microbatches % stages:
        raise ValueError(
            f"make_schedule: '{name}' takes microbatches in turns of one per stage, and {stages} "
            f"stages do not divide {microbatches} microbatches. Use a multiple of {stages} "
            "microbatches, or '1f1b'."
        )


def _gpipe(stage: int, stages: int, microbatches: int, chunks: int) -> list[Action]:
    numbers = range(microbatches)
    return [Action("forward", i) for i in numbers] + [Action("backward", i) for i in numbers]


def _one_f_one_b(stage: int, stages: int, microbatches: int, chunks: int) -> list[Action]:
    numbers = range(microbatches)
    forwards = [Action("forward", i) for i in numbers]
    return _alternate(stages - 1 - stage, forwards, [Action("backward", i) for i in numbers])


def _interleaved(stage: int, stages: int, microbatches: int, chunks: int) -> list[Action]:
    forwards, backwards = _both_in_turns(stages, microbatches, chunks)
    return _alternate(2 * (stages - 1 - stage) + (chunks - 1) * stages, forwards, backwards)


def in_turns(stages: int, microbatches: int, chunks: int) -> list[tuple[int, int]]:
    """Return (microbatch, chunk) in turns: S microbatches, through one chunk after the other."""
    return [
        (turn + i, chunk)
        for turn in range(0, microbatches, stages)
        for chunk in range(chunks)
        for i in range(min(stages, microbatches - turn))
    ]


def _both_in_turns(
    stages: int, microbatches: int, chunks: int
) -> tuple[list[Action], list[Action]]:
    """Return the forwards and the backwards of `in_turns`; backwards begin at the last chunk."""
    turns = in_turns(stages, microbatches, chunks)
    forwards = [Action("forward", i, chunk) for i, chunk in turns]
    return forwards, [Action("backward", i, chunks - 1 - chunk) for i, chunk in turns]


def _lockstep(stages: int, microbatches: int, chunks: int) -> tuple[Row, ...]:
    """Return rows of forwards and rows of backwards in turn, without those that are idle."""
    forwards, backwards = _both_in_turns(stages, microbatches, chunks)
    first, rows = chunks * stages - 1, []  # the row of the last group's first forward
    for number in range(first + len(backwards) + stages):
        for actions, starts in (
            (forwards, range(stages)),
            (backwards, range(first + stages - 1, first - 1, -1)),
        ):
            places = [number - start for start in starts]
            row = [actions[n] if 0 <= n < len(actions) else None for n in places]
            rows += [tuple(row)] if any(row) else []
    return tuple(rows)


def _alternate(warm_up: int, forwards: list[Action], backwards: list[Action]) -> list[Action]:
    """Return `warm_up` forwards, then a forward and a backward in turn, then backwards."""
    order, rest = forwards[:warm_up], forwards[warm_up:]
    for i, backward in enumerate(backwards):
        order += [*rest[i : i + 1], backward]
    return order


class _Progress:
    """The ticks in which actions were done so far."""

    def __init__(self, stages: int, chunks: int):
        self.stages, self.groups = stages, stages * chunks
        self.done: dict[tuple[str, int, int], int] = {}

    def ready(self, stage: int, action: Action, tick: int) -> bool:
        """Return whether all that an action needs was done before a tick."""
        group = action.chunk * self.stages + stage
        needs = list(needed(action.kind, group, self.groups))
        return all(self.done.get((k, action.microbatch, g), tick) < tick for k, g in needs)

    def record(self, stage: int, action: Action, tick: int) -> None:
        self.done[action.kind, action.microbatch, action.chunk * self.stages + stage] = tick


def needed(kind: ActionKind, group: int, groups: int) -> Iterator[tuple[ActionKind, int]]:
    """Yield what an action on a group of layers needs: (kind, group) of the same microbatch."""
    if kind == "forward":
        if group:
            yield "forward", group - 1
    elif kind == "backward":
        yield "forward", group
        if group < groups - 1:
            yield "backward", group + 1
    else:
        yield "backward", group


_Next = Callable[[int, int, _Progress], Action | None]


def _run(stages: int, chunks: int, choose: _Next) -> tuple[Row, ...]:
    """Run ticks until all stages have nothing left; a tick in which all are idle is the end."""
    progress, rows = _Progress(stages, chunks), []
    while True:
        row = tuple(choose(stage, len(rows), progress) for stage in range(stages))
        if not any(row):
            return tuple(rows)
        for stage, action in enumerate(row):
            if action is not None:
                progress.record(stage, action, len(rows))
        rows.append(row)


def _in_order(orders: list[list[Action]]) -> _Next:
    """Return the choice of each stage's next action in its order, or None until it is ready."""
    places = [0] * len(orders)

    def choose(stage: int, tick: int, progress: _Progress) -> Action | None:
        order, place = orders[stage], places[stage]
        if place == len(order) or not progress.ready(stage, order[place], tick):
            return None
        places[stage] += 1
        return order[place]

    return choose


def _zero_bubble(stages: int, microbatches: int) -> _Next:
    """Return ZB-H1's choice: forward, else backward, else weights.

    At most S - s microbatches of stage s have no backward yet, as in 1F1B, and at most S have no
    gradient of their weights yet, 1F1B's most.
    """
    counts = [{"forward": 0, "backward": 0, "weights": 0} for _ in range(stages)]

    def choose(stage: int, tick: int, progress: _Progress) -> Action | None:
        count = counts[stage]
        full = (
            count["forward"] - count["backward"] >= stages - stage
            or count["forward"] - count["weights"] >= stages
        )
        for kind in ACTION_KINDS[full:]:
            action = Action(kind, count[kind])
            if action.microbatch < microbatches and progress.ready(stage, action, tick):
                count[kind] += 1
                return action
        return None

    return choose


class StepTime(NamedTuple):
    """The seconds of a table: dependencies alone, and every tick as long as its slowest stage."""

    asynchronous: float
    lockstep: float


def step_time(
    schedule: Schedule,
    forward: Sequence[float],
    backward: Sequence[float],
    weights: Sequence[float],
) -> StepTime:
    """Compute the time of a schedule over stages that may be unequal; handoffs take none.

    Args:
      schedule: the table.
      forward, backward, weights: seconds per stage of one microbatch through one chunk: the
        forward, and the gradients of the input and of the weights.
    """

    def seconds(stage: int, kind: ActionKind) -> float:
        if kind == "forward":
            return forward[stage]
        if kind == "weights":
            return weights[stage]
        return backward[stage] + (0.0 if schedule.splits_backward else weights[stage])

    ends: dict[tuple[str, int, int], float] = {}
    free, lockstep = [0.0] * schedule.stages, 0.0
    for row in schedule.rows:
        slowest = 0.0
        for stage, action in enumerate(row):
            if action is None:
                continue
            group, took = schedule.group(stage, action), seconds(stage, action.kind)
            needs = needed(action.kind, group, schedule.groups)
            starts = [ends[kind, action.microbatch, g] for kind, g in needs]
            free[stage] = max(free[stage], *starts, 0.0) + took
            ends[action.kind, action.microbatch, group] = free[stage]
            slowest = max(slowest, took)
        lockstep += slowest
    return StepTime(max(free), lockstep)
