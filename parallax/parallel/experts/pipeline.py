"""A software pipeline over chunks: stages of neighbouring chunks run at once.

In one tick stage s works on chunk t - s, from what the tick before left. Nothing in a tick depends
on anything else in it, so the compiler may run one chunk's matrix products while others' rows
travel. Rows of several stages that travel over the same mesh axes do so together.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.experts.exchange import CompiledAs, exchange_rows


class Stage(NamedTuple):
    """One step of a chunk.

    Attributes:
      run: (what the stage before returned, or None; this chunk's inputs) -> what goes on; the Rows
        to send if there are `axes`.
      inputs: tree of [chunks, ...].
      axes: mesh axes over which what `run` returns travels.
      arrive: (rows that came, this chunk's inputs) -> what goes on.
    """

    run: Callable[[Any, Any], Any]
    inputs: Any
    axes: tuple[str, ...] = ()
    arrive: Callable[[jax.Array, Any], Any] = lambda rows, inputs: rows


def pipelined(stages: Sequence[Stage], chunks: int, compiled: CompiledAs) -> Any:
    """Every chunk through all stages, in chunks + stages - 1 ticks.

    Args:
      stages: in order; a stage's result has the same shapes for every chunk.
      chunks: how many.
      compiled: as what exchanges are compiled.

    Returns:
      What the last stage returned, stacked: [chunks, ...]. Every stage runs once a chunk.
    """
    depth = len(stages)

    def tick(waiting: Sequence, inputs: dict[int, Any]) -> list:
        """What stages 0, 1, ... return; stage s takes what s - 1 returned a tick before."""
        done: list = [None] * depth
        for s, given in inputs.items():
            done[s] = stages[s].run(waiting[s - 1] if s else None, given)
        for axes in dict.fromkeys(stages[s].axes for s in inputs if stages[s].axes):
            together = [s for s in inputs if stages[s].axes == axes]
            with jax.named_scope("exchange_" + "_".join(axes)):
                arrived = exchange_rows([done[s] for s in together], axes=axes, compiled=compiled)
            for s, rows in zip(together, arrived, strict=True):
                done[s] = stages[s].arrive(rows, inputs[s])
        return done

    def single(waiting: Sequence, t: int) -> list:
        active = [s for s in range(depth) if 0 <= t - s < chunks]
        inputs = {s: jax.tree.map(lambda x, i=t - s: x[i], stages[s].inputs) for s in active}
        return tick(waiting, inputs)

    waiting: list = [None] * depth
    for t in range(depth - 1):
        waiting = single(waiting, t)

    finished = []
    if chunks >= depth:  # ticks in which every stage has a chunk

        def body(waiting, inputs):
            *waiting, done = tick(waiting, dict(enumerate(inputs)))
            return waiting, done

        inputs = tuple(
            jax.tree.map(lambda x, s=s: x[depth - 1 - s : chunks - s], stage.inputs)
            for s, stage in enumerate(stages)
        )
        waiting, done = lax.scan(body, waiting[:-1], inputs)
        waiting = [*waiting, None]
        finished.append(done)

    for t in range(max(chunks, depth - 1), chunks + depth - 1):
        waiting = single(waiting, t)
        finished.append(jax.tree.map(lambda x: x[None], waiting[-1]))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *finished)


def exchanges(stages_axes: Sequence[tuple[str, ...]], chunks: int, axes: tuple[str, ...]) -> int:
    """How many collectives over `axes` a pipeline of stages with these axes makes."""
    ticks = range(chunks + len(stages_axes) - 1)
    return sum(
        any(own == axes and 0 <= t - s < chunks for s, own in enumerate(stages_axes)) for t in ticks
    )
