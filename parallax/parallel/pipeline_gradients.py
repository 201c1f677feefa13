"""The interpreter of pipeline schedules: loss and gradients of one training step.

One loop runs the ticks of a table. In each tick a stage takes the branch of its own action, so
stages differ, and a branch may hold no collective over the stages. What needs all stages (handoffs,
the embedding, the loss) is outside of these branches, under conditions on the tick alone.
Shapes: B sequences on this device, M microbatches, b = B / M, S stages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.gradients import (
    Gradients,
    LocalParams,
    Precision,
    TrainFunctions,
    cut,
    typed_as,
)
from parallax.parallel.pipeline_stages import PipelineStages, zeros_like_type
from parallax.parallel.schedule_plan import StagePlan, TickPlan, plan_of
from parallax.parallel.schedules import Schedule
from parallax.parallel.split import Split
from parallax.parallel.two_passes import TwoPasses, permutes, pruned, two_passes
from parallax.parallel.varying import vary_over, varying_axes

_FLOAT32 = Precision()


def run_schedule(
    schedule: Schedule,
    functions: TrainFunctions,
    params: LocalParams,
    inputs: Any,
    split: Split,
    axis: str,
    precision: Precision = _FLOAT32,
) -> Gradients:
    """Compute the loss and this device's gradients of all microbatches, by a schedule.

    Args:
      schedule: the table; its stages are the devices of `axis`.
      functions: the model. `blocks` gets the layers of one chunk, a contiguous part of the rows of
        `params.layers`, and the chunk's number.
      params: this device's parameters, typed as varying over the axes whose devices use them for
        different work.
      inputs: pytree whose leaves have the sequences first, [B, ...].
      split: how the model is split. A microbatch in flight keeps the input of its stage, and what
        `blocks` keeps for its backward pass (`split.remat`) that depends on it: no parameters.
      axis: mesh axis of the stages.
      precision: dtype of the sums, and scale of the loss.

    Returns:
      This device's terms and gradients, the same as without a pipeline; the loss and what lies
      beside it are the same on all stages.

    Cost: per tick a handoff of a share of the width in each direction that any stage needs. Where
      the gradients of a stage's input and of its weights are two actions (ZB-H1), each goes back
      through the whole stage: the second computes the first again, and both recompute what remat
      says. Where layers pass data around a ring, all stages run every kind of action
      that any of them runs in a tick, and keep the results of their own: a permutation in a branch
      would wait for devices that do not take it.
    """
    inputs = cut(inputs, schedule.microbatches)
    stages = PipelineStages(schedule, functions, split, axis)
    zero = jnp.int32(0)
    example = jax.tree.map(lambda x: x[0], inputs)
    share = stages.empty_share(params, example)

    def stage(layers, share, microbatch, chunk):
        (y, penalty), statistics = stages.layers(layers, share, microbatch, chunk)
        return (vary_over(y, sorted(varying_axes(share))), penalty), statistics

    # Each stage has a microbatch and chunk of its own.
    own, number = jax.tree.map(lambda x: vary_over(x, [axis]), (example, zero))
    arguments = stages.chunk(params.layers, number), share, own, number
    passes = two_passes(stage, axis, *arguments)
    (_, penalty), statistics = jax.eval_shape(stage, *arguments)
    loss, beside = jax.eval_shape(stages.loss, params.outer, share, example)
    plan, chunks = plan_of(schedule), schedule.virtual_stages
    start = _State(
        loss=zeros_like_type(loss),
        penalty=zeros_like_type(penalty),
        gradients=jax.tree.map(lambda p: typed_as(0.0, p).astype(precision.sum_dtype), params),
        x=zeros_like_type(jax.typeof(share), plan.slots.x),
        gradient=zeros_like_type(jax.typeof(share), plan.slots.gradient),
        kept=[zeros_like_type(a, plan.slots.kept) for a in passes.kept],
        beside=jax.tree.map(lambda a: zeros_like_type(a, schedule.microbatches), beside),
        statistics=jax.tree.map(
            lambda a: zeros_like_type(a, schedule.microbatches * chunks), statistics
        ),
    )
    is_uniform = permutes(stage, *arguments)
    tick = _Tick(stages, params, inputs, passes, share, precision.loss_scale, is_uniform)
    table = jax.tree.map(jnp.asarray, plan.ticks)
    state, _ = lax.scan(lambda state, row: (tick(state, row), None), start, table)
    statistics = jax.tree.map(
        lambda x: x.reshape(schedule.microbatches, chunks * x.shape[1], *x.shape[2:]),
        state.statistics,
    )
    return Gradients(state.loss, state.penalty, state.gradients, (state.beside, statistics))


class _State(NamedTuple):
    """What the loop carries from tick to tick.

    Attributes:
      loss, penalty: sums so far.
      gradients: sums so far, of each parameter.
      x, gradient: slots of the shares of actions' inputs, and of their outputs' gradients.
      kept: slots of what a forward keeps for its backward.
      beside, statistics: results without gradients, of each microbatch, and of each of its chunks.
    """

    loss: jax.Array
    penalty: jax.Array
    gradients: LocalParams
    x: jax.Array
    gradient: jax.Array
    kept: list[jax.Array]
    beside: Any
    statistics: Any


@dataclass(frozen=True)
class _Tick:
    """One tick of the table on this device.

    Attributes:
      stages, params, inputs, passes: what it runs, and on what.
      empty: zeros of an activation on the wire.
      scale: factor of all gradients.
      is_uniform: whether all stages run whatever any stage runs, and keep their own.
    """

    stages: PipelineStages
    params: LocalParams
    inputs: Any
    passes: TwoPasses
    empty: jax.Array
    scale: float
    is_uniform: bool

    def __call__(self, state: _State, row: TickPlan) -> _State:
        stages = self.stages
        mine = jax.tree.map(lambda x: x[stages.me], row.stages)
        first, last = (self.microbatch(row.stages.microbatch[s]) for s in (0, -1))
        state = self.embed(state, row, mine, first)
        state, share = self.act(state, row, mine)
        state = self.end(state, row, mine, last, share)
        state = self.embed_back(state, row, first, share)
        after = _when(row.sends, stages.hand_on, self.empty, share, 1)
        before = _when(row.sends_back, stages.hand_on, self.empty, share, -1)
        return state._replace(
            x=_put(state.x, mine.x_arrives, after, mine.x_arrives >= 0),
            gradient=_put(state.gradient, mine.gradient_arrives, before,
                          mine.gradient_arrives >= 0),
        )  # fmt: skip

    def microbatch(self, number: jax.Array) -> Any:
        return jax.tree.map(lambda x: _at(x, number), self.inputs)

    def embed(self, state: _State, row: TickPlan, mine: StagePlan, inputs: Any) -> _State:
        """Embed the first stage's microbatch on all stages, for the first."""

        def run():
            with jax.named_scope("embed_of_tick"):
                share = self.stages.embed(self.params.outer, inputs)
                return vary_over(share, sorted(varying_axes(self.empty)))

        share = _when(row.embeds, run, self.empty)
        return state._replace(x=_put(state.x, mine.x, share, row.embeds & self.stages.is_first))

    def act(self, state: _State, row: TickPlan, mine: StagePlan) -> tuple[_State, jax.Array]:
        """Run this stage's own action; return also the share that it hands on or back."""
        place = mine.microbatch * self.stages.schedule.virtual_stages + mine.chunk
        statistics = jax.tree.map(lambda slots: _at(slots, place), state.statistics)
        before = (
            state.penalty, state.gradients.layers, self.empty, self.kept(state, mine), statistics
        )  # fmt: skip
        kinds = self.stages.schedule.kinds
        runs = [lambda kind=k: self.branch(kind, state, mine, statistics) for k in kinds]
        if self.is_uniform:
            made = before
            for number, run in enumerate(runs):
                own, new = mine.kind == number + 1, _when(row.runs[number], run, before)
                made = jax.tree.map(lambda a, b, own=own: jnp.where(own, a, b), new, made)
        else:
            made = lax.switch(mine.kind, [lambda: before, *runs])
        penalty, layers, share, kept, statistics = made
        slots = [_put(slot, mine.kept, a) for slot, a in zip(state.kept, kept, strict=True)]
        gradients = state.gradients._replace(layers=layers)
        statistics = jax.tree.map(
            lambda slots, x: _put(slots, place, x), state.statistics, statistics
        )
        state = state._replace(
            penalty=penalty, gradients=gradients, kept=slots, statistics=statistics
        )
        return state, share

    def kept(self, state: _State, mine: StagePlan) -> list[jax.Array]:
        return [_at(slot, mine.kept) for slot in state.kept]

    def branch(self, kind: str, state: _State, mine: StagePlan, statistics: Any):
        """Run one kind of action.

        Returns:
          Sums of penalties and gradients, the share to hand on or back, what is kept, statistics.
        """
        with jax.named_scope(f"stage_{kind}"):
            layers = self.stages.chunk(self.params.layers, mine.chunk)
            x, others = _at(state.x, mine.x), (self.microbatch(mine.microbatch), mine.chunk)
            sums = state.gradients.layers
            if kind == "forward":
                ((y, penalty), statistics), kept = self.passes.forward(layers, x, *others)
                return state.penalty + penalty, sums, y, kept, statistics
            splits = self.stages.schedule.splits_backward
            which = (kind == "weights" or not splits, kind == "backward")
            seeds = _at(state.gradient, mine.gradient), typed_as(self.scale, state.penalty)
            kept = self.kept(state, mine)
            of_layers, of_x = self.passes.backward(layers, x, others, kept, seeds, which)
            if of_layers is not None:
                sums = self.stages.add_chunk(sums, of_layers, mine.chunk)
            share = self.empty if of_x is None else of_x
            return state.penalty, sums, share, kept, statistics

    def end(
        self, state: _State, row: TickPlan, mine: StagePlan, inputs: Any, share: jax.Array
    ) -> _State:
        """Add the loss of what the last stage has made, and keep its gradient there."""

        def run():
            with jax.named_scope("loss_of_tick"):
                loss, back, beside = jax.vjp(
                    lambda outer, x: self.stages.loss(outer, x, inputs),
                    self.params.outer, share, has_aux=True,
                )  # fmt: skip
                outer, gradient = back(typed_as(self.scale, loss))
                return state.loss + loss, _add(state.gradients.outer, outer), gradient, beside

        number = row.stages.microbatch[-1]
        beside = jax.tree.map(lambda slots: _at(slots, number), state.beside)
        before = state.loss, state.gradients.outer, self.empty, beside
        loss, outer, gradient, beside = _when(row.ends, run, before)
        return state._replace(
            loss=loss,
            gradients=state.gradients._replace(outer=outer),
            gradient=_put(state.gradient, mine.gradient, gradient, row.ends & self.stages.is_last),
            beside=jax.tree.map(lambda slots, x: _put(slots, number, x), state.beside, beside),
        )

    def embed_back(self, state: _State, row: TickPlan, inputs: Any, share: jax.Array) -> _State:
        """Add the gradient of the embeddings that the first stage has gone back through."""

        def embed(outer):
            return vary_over(self.stages.embed(outer, inputs), sorted(varying_axes(share)))

        def back(outer, gradient):
            return jax.vjp(embed, outer)[1](gradient)

        def run():
            with jax.named_scope("embed_of_tick_back"):
                used = jnp.where(self.stages.is_first, share, jnp.zeros_like(share))
                found = pruned(back, (True,), self.params.outer, used)
                return _add(state.gradients.outer, found[0])

        outer = _when(row.embeds_back, run, state.gradients.outer)
        return state._replace(gradients=state.gradients._replace(outer=outer))


def _when(condition: jax.Array, run: Callable[..., Any], otherwise: Any, *arguments: Any) -> Any:
    return lax.cond(condition, lambda: run(*arguments), lambda: otherwise)


def _add(total: Any, more: Any) -> Any:
    return jax.tree.map(lambda x, part: x + part.astype(x.dtype), total, more)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _put(
    slots: jax.Array, index: jax.Array, x: jax.Array, condition: jax.Array | None = None
) -> jax.Array:
    """Write one slot, if the condition holds."""
    if condition is not None:
        index = jnp.maximum(index, 0)
        x = jnp.where(condition, x, _at(slots, index))
    return lax.dynamic_update_index_in_dim(slots, x, index, 0)
