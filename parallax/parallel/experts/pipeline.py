"""The software pipeline over chunks, in which stages of consecutive chunks run at once.

In tick t, stage s works on chunk t - s, from the results of the tick before. No stage depends on
another in the same tick, so one chunk's matrix products run while other chunks' rows travel:
arriving rows and rows on their way home together.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.experts.exchange import CompiledAs, exchange_rows


class Stage(NamedTuple):
    """One stage of a chunk.

    Its three functions take the carried value and this chunk's inputs, and return the next value.

    Attributes:
      inputs: tree of [chunks, ...].
      before: runs before the tick's exchange; in a stage that sends, it returns Rows. The first
        stage's gets None.
      beside: runs beside the exchange; unused in a stage that sends, whose exchange runs instead.
      after: runs after the exchange.
      sends: whether the stage takes part in the exchange.
    """

    inputs: Any
    before: Callable[[Any, Any], Any] = lambda x, inputs: x
    beside: Callable[[Any, Any], Any] = lambda x, inputs: x
    after: Callable[[Any, Any], Any] = lambda x, inputs: x
    sends: bool = False


def pipelined(
    stages: Sequence[Stage], chunks: int, axes: tuple[str, ...], compiled: CompiledAs
) -> Any:
    """Run every chunk through all stages, in chunks + stages - 1 ticks.

    Args:
      stages: the stages, in order; a stage's result has the same shapes for every chunk.
      chunks: number of chunks.
      axes: mesh axes over which rows travel.
      compiled: the compiled kind of their exchange.

    Returns:
      The last stage's results, stacked: [chunks, ...]. Every stage runs once per chunk.
    """
    depth = len(stages)

    def tick(waiting: Sequence, inputs: dict[int, Any]) -> list:
        """Return the results of all stages; stage s takes that of s - 1 from the tick before."""
        x = {s: stages[s].before(waiting[s - 1] if s else None, i) for s, i in inputs.items()}
        # Everything else runs before or after the exchange, so that in programs that run one
        # collective at a time only the experts overlap with it.
        x = lax.optimization_barrier(x)
        together = [s for s in inputs if stages[s].sends]
        beside = {s: stages[s].beside(x[s], i) for s, i in inputs.items() if s not in together}
        if together:
            with jax.named_scope("exchange"):
                arrived = exchange_rows([x[s] for s in together], axes=axes, compiled=compiled)
            beside |= dict(zip(together, arrived, strict=True))
        x = lax.optimization_barrier(beside)
        return [stages[s].after(x[s], inputs[s]) if s in inputs else None for s in range(depth)]

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


def exchanges(chunks: int, first: int, last: int) -> int:
    """Return the number of collectives of a pipeline whose stages `first` and `last` send."""
    return len({chunk + stage for chunk in range(chunks) for stage in (first, last)})
