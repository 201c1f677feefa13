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

    Cost: one loop whose body is one layer of each kind. With several kinds XLA copies a group's
      rows, and where the kinds do not divide N, all rows once; see `scan_by_index`.
    """
    depth = len(jax.tree.leaves(rows)[0])
    period = len(kinds)
    if period == 1:
        return lax.scan(lambda x, row: layer(x, row, kinds[0]), x, rows)
    whole = depth - depth % period
    results = []
    if whole:

        def cut(r):
            return (r if whole == depth else r[:whole]).reshape(-1, period, *r.shape[1:])

        def group(x, group_rows):
            return _in_turn(layer, x, _picked(group_rows, period), kinds)

        x, beside = lax.scan(group, x, jax.tree.map(cut, rows))
        results.append(_flat(beside))
    if whole < depth:
        rest = jax.tree.map(lambda r: r[whole:], rows)
        x, beside = _in_turn(layer, x, _picked(rest, depth - whole), kinds)
        results.append(beside)
    return x, _joined(results)


def scan_by_index(
    layer: OfLayer, x: Any, depth: int, kinds: tuple[LayerKind, ...]
) -> tuple[Any, Any]:
    """Run x through `depth` layers, each of which picks its rows by its number, an int32 scalar.

    Arguments and results are as of `scan_layers`. In a loop XLA reads a row in place only at an
    index that is made from the loop's counter, as here, and not at one that is read from an array.
    """
    period = len(kinds)
    groups, results = depth // period, []

    def group(carry, _):
        i, x = carry
        x, beside = _in_turn(layer, x, [i * period + n for n in range(period)], kinds)
        return (i + 1, x), beside

    if groups:
        (_, x), beside = lax.scan(group, (jnp.int32(0), x), None, length=groups)
        results.append(_flat(beside))
    if rest := [jnp.int32(n) for n in range(groups * period, depth)]:
        x, beside = _in_turn(layer, x, rest, kinds)
        results.append(beside)
    return x, _joined(results)


def _in_turn(layer: OfLayer, x: Any, rows: list[Any], kinds: tuple[LayerKind, ...]):
    """Run a layer per row, and stack their other results."""
    found = []
    for row, kind in zip(rows, kinds, strict=False):
        x, beside = layer(x, row, kind)
        found.append(beside)
    return x, jax.tree.map(lambda *each: jnp.stack(each), *found)


def _picked(rows: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda r, n=n: r[n], rows) for n in range(count)]


def _flat(beside: Any) -> Any:
    return jax.tree.map(lambda r: r.reshape(-1, *r.shape[2:]), beside)


def _joined(results: list[Any]) -> Any:
    if len(results) == 1:
        return results[0]
    return jax.tree.map(lambda *each: jnp.concatenate(each), *results)
