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

from parallax.parallel.gradients import LocalParams, TrainFunctions
from parallax.parallel.pipeline_stages import PipelineStages, zeros_like_type
from parallax.parallel.schedule_plan import StagePlan, TickPlan, plan_of
from parallax.parallel.schedules import Schedule
from parallax.parallel.split import Split
from parallax.parallel.two_passes import TwoPasses, permutes, recomputed, remembered
from parallax.parallel.varying import vary_alike, vary_over, varying_axes


def run_schedule(
    schedule: Schedule,
    functions: TrainFunctions,
    params: LocalParams,
    inputs: Any,
    split: Split,
    axis: str,
) -> tuple[jax.Array, LocalParams]:
    """Compute the loss and this device's gradients of all microbatches, by a schedule.

    Args:
      schedule: the table; its stages are the devices of `axis`.
      functions: the model. `blocks` gets the layers of one chunk, a contiguous part of the rows of
        `params.layers`, and the chunk's number.
      params: this device's parameters, typed as varying over the axes whose devices use them for
        different work.
      inputs: pytree whose leaves have the sequences first, [B, ...].
      split: how the model is split. With remat "layer", a microbatch in flight keeps the input of
        its stage, as shares of the width; otherwise also what `blocks` keeps for its backward pass,
        without parameters and what follows from them alone.
      axis: mesh axis of the stages.

    Returns:
      The loss of this device's tokens, with the penalties of all stages; gradients like `params`,
      summed over microbatches in the dtypes of `params`, and not over devices.

    Cost: per tick a handoff of a share of the width in each direction that any stage needs. Where
      the gradients of a stage's input and of its weights are two actions (ZB-H1), each goes back
      through the whole stage: the second computes the first again, and both its forward pass where
      remat is "layer". Where layers pass data around a ring, all stages run every kind of action
      that any of them runs in a tick, and keep the results of their own: a permutation in a branch
      would wait for devices that do not take it.
    """
    inputs = jax.tree.map(lambda x: x.reshape(schedule.microbatches, -1, *x.shape[1:]), inputs)
    stages = PipelineStages(schedule, functions, split, axis)
    zero = jnp.int32(0)
    example = jax.tree.map(lambda x: x[0], inputs)
    share = stages.empty_share(params, example)

    def stage(layers, share, microbatch, chunk):
        y, penalty = stages.layers(layers, share, microbatch, chunk)
        return vary_over(y, sorted(varying_axes(share))), penalty

    arguments = stages.chunk(params.layers, zero), share, example, zero
    passes = recomputed(stage) if split.remat == "layer" else remembered(stage, *arguments)
    penalty = zeros_like_type(jax.eval_shape(stage, *arguments)[1])
    plan = plan_of(schedule)
    start = _State(
        loss=zeros_like_type(jax.eval_shape(stages.loss, params.outer, share, example)),
        penalty=penalty,
        gradients=jax.tree.map(lambda p: zeros_like_type(jax.typeof(p)), params),
        x=zeros_like_type(jax.typeof(share), plan.slots.x),
        gradient=zeros_like_type(jax.typeof(share), plan.slots.gradient),
        kept=[zeros_like_type(a, plan.slots.kept) for a in passes.kept],
    )
    tick = _Tick(stages, params, inputs, passes, share, permutes(stage, *arguments))
    table = jax.tree.map(jnp.asarray, plan.ticks)
    state, _ = lax.scan(lambda state, row: (tick(state, row), None), start, table)
    total = lax.psum(state.penalty, axis).astype(state.loss.dtype)
    loss, total = vary_alike(state.loss, total)
    return loss + total, state.gradients


class _State(NamedTuple):
    """What the loop carries from tick to tick.

    Attributes:
      loss, penalty: sums so far.
      gradients: sums so far, of each parameter.
      x, gradient: slots of the shares of actions' inputs, and of their outputs' gradients.
      kept: slots of what a forward keeps for its backward.
    """

    loss: jax.Array
    penalty: jax.Array
    gradients: LocalParams
    x: jax.Array
    gradient: jax.Array
    kept: list[jax.Array]


@dataclass(frozen=True)
class _Tick:
    """One tick of the table on this device.

    Attributes:
      stages, params, inputs, passes: what it runs, and on what.
      empty: zeros of an activation on the wire.
      is_uniform: whether all stages run whatever any stage runs, and keep their own.
    """

    stages: PipelineStages
    params: LocalParams
    inputs: Any
    passes: TwoPasses
    empty: jax.Array
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
        before = state.penalty, state.gradients.layers, self.empty, self.kept(state, mine)
        branches = [
            lambda: before,
            *(lambda k=k: self.branch(k, state, mine) for k in self.stages.schedule.kinds),
        ]
        if self.is_uniform:
            made = before
            for number, branch in enumerate(branches[1:], start=1):
                own, new = mine.kind == number, _when(row.runs[number - 1], branch, before)
                made = jax.tree.map(lambda a, b, own=own: jnp.where(own, a, b), new, made)
        else:
            made = lax.switch(mine.kind, branches)
        penalty, layers, share, kept = made
        slots = [_put(slot, mine.kept, a) for slot, a in zip(state.kept, kept, strict=True)]
        gradients = state.gradients._replace(layers=layers)
        return state._replace(penalty=penalty, gradients=gradients, kept=slots), share

    def kept(self, state: _State, mine: StagePlan) -> list[jax.Array]:
        return [_at(slot, mine.kept) for slot in state.kept]

    def branch(self, kind: str, state: _State, mine: StagePlan):
        """Run one kind of action: sums of penalties and gradients, a share, and what is kept."""
        with jax.named_scope(f"stage_{kind}"):
            layers = self.stages.chunk(self.params.layers, mine.chunk)
            x, others = _at(state.x, mine.x), (self.microbatch(mine.microbatch), mine.chunk)
            sums = state.gradients.layers
            if kind == "forward":
                (share, penalty), kept = self.passes.forward(layers, x, *others)
                return state.penalty + penalty, sums, share, kept
            splits = self.stages.schedule.splits_backward
            which = (kind == "weights" or not splits, kind == "backward")
            seeds = _at(state.gradient, mine.gradient), jnp.ones_like(state.penalty)
            kept = self.kept(state, mine)
            of_layers, of_x = self.passes.backward(layers, x, others, kept, seeds, which)
            if of_layers is not None:
                sums = self.stages.add_chunk(sums, of_layers, mine.chunk)
            return state.penalty, sums, self.empty if of_x is None else of_x, kept

    def end(
        self, state: _State, row: TickPlan, mine: StagePlan, inputs: Any, share: jax.Array
    ) -> _State:
        """Add the loss of what the last stage has made, and keep its gradient there."""

        def run():
            with jax.named_scope("loss_of_tick"):
                loss, back = jax.vjp(
                    lambda outer, x: self.stages.loss(outer, x, inputs), self.params.outer, share
                )
                outer, gradient = back(jnp.ones_like(loss))
                return state.loss + loss, _add(state.gradients.outer, outer), gradient

        before = state.loss, state.gradients.outer, self.empty
        loss, outer, gradient = _when(row.ends, run, before)
        slots = _put(state.gradient, mine.gradient, gradient, row.ends & self.stages.is_last)
        gradients = state.gradients._replace(outer=outer)
        return state._replace(loss=loss, gradients=gradients, gradient=slots)

    def embed_back(self, state: _State, row: TickPlan, inputs: Any, share: jax.Array) -> _State:
        """Add the gradient of the embeddings that the first stage has gone back through."""

        def run():
            with jax.named_scope("embed_of_tick_back"):
                _, back = jax.vjp(
                    lambda outer: vary_over(
                        self.stages.embed(outer, inputs), sorted(varying_axes(share))
                    ),
                    self.params.outer,
                )
                used = jnp.where(self.stages.is_first, share, jnp.zeros_like(share))
                return _add(state.gradients.outer, back(used)[0])

        outer = _when(row.embeds_back, run, state.gradients.outer)
        return state._replace(gradients=state.gradients._replace(outer=outer))


def _when(condition: jax.Array, run: Callable[..., Any], otherwise: Any, *arguments: Any) -> Any:
    return lax.cond(condition, lambda: run(*arguments), lambda: otherwise)


def _add(total: Any, more: Any) -> Any:
    return jax.tree.map(jnp.add, total, more)


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
