"""The scan over stacked layers of several kinds: over whole patterns, then the layers left over."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from parallax.models.layer_kinds import LayerKind

# (x, a layer's rows, its kind) -> x, other results
OfLayer = Callable[[Any, Any, LayerKind], tuple[Any, Any]]


def scan_layers(layer: OfLayer, x: Any, rows: Any, kinds: tuple[LayerKind, ...]) -> tuple[Any, Any]:
    """Run x through a stack of layers, of which layer i is of kind i modulo their number.

    Args:
      layer: runs one layer.
      x: what the first layer takes.
      rows: a pytree whose leaves have the layers first, [N, ...].
      kinds: the kinds that repeat.

    Returns:
      What the last layer returns, and the layers' other results, leaves [N, ...].

    Cost: one loop whose body is one layer of each kind. Where these do not divide N, the rest
      follows it, and its rows and the others' are copied: rows of indices cost nothing.
    """
    depth = len(jax.tree.leaves(rows)[0])
    period = len(kinds)
    if period == 1:
        return lax.scan(lambda x, row: layer(x, row, kinds[0]), x, rows)

    def in_turn(x, rows, count: int):
        found = []
        for place in range(count):
            x, beside = layer(x, jax.tree.map(lambda r, at=place: r[at], rows), kinds[place])
            found.append(beside)
        return x, jax.tree.map(lambda *each: jnp.stack(each), *found)

    whole = depth - depth % period
    results = []
    if whole:

        def cut(r):
            return (r if whole == depth else r[:whole]).reshape(-1, period, *r.shape[1:])

        x, beside = lax.scan(lambda x, r: in_turn(x, r, period), x, jax.tree.map(cut, rows))
        results.append(jax.tree.map(lambda r: r.reshape(-1, *r.shape[2:]), beside))
    if whole < depth:
        x, beside = in_turn(x, jax.tree.map(lambda r: r[whole:], rows), depth - whole)
        results.append(beside)
    if len(results) == 1:
        return x, results[0]
    return x, jax.tree.map(lambda *each: jnp.concatenate(each), *results)
