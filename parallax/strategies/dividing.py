"""The meshes under which a strategy divides a model, for errors that refuse another one."""

import itertools
from collections.abc import Callable, Iterable, Iterator

from parallax.meshes.mesh import MeshSpec
from parallax.strategies.named import STRATEGIES, build
from parallax.strategy import Strategy

_MOST_TRIED = 64


def sharded_over[T](strategy: Strategy, make: Callable[[Strategy], T]) -> T:
    """Return what `make` makes of a strategy; its ValueError names smaller meshes that can run."""
    try:
        return make(strategy)
    except ValueError as error:
        sizes = range(strategy.mesh.size, 1, -1)
        raise ValueError(with_meshes(error, strategy.name, sizes, make)) from None


def with_meshes(
    error: Exception, name: str, sizes: Iterable[int], check: Callable[[Strategy], object]
) -> str:
    """Return an error's text with meshes of the strategy that `check` takes, if there are any.

    Args:
      error: why the strategy's mesh is refused.
      name: the strategy's name; one that is not registered, as of a file, adds nothing.
      sizes: numbers of devices, the first with such a mesh counts.
      check: raises ValueError or NotImplementedError for a strategy that cannot run.
    """
    for devices in sizes:
        if found := dividing_meshes(name, devices, check):
            return f"{error} Meshes of {devices} that divide: {' or '.join(found)} (--mesh)."
    return str(error)


def or_dividing(
    strategy: Strategy,
    devices: int,
    change: Callable[[Strategy], Strategy],
    check: Callable[[Strategy], object],
) -> tuple[Strategy, str]:
    """Return a strategy or, where `check` refuses its mesh, the same on the first that it takes.

    Args:
      strategy: one whose mesh nobody asked for.
      devices: the devices of the other mesh.
      change: makes the options of a new strategy those that were asked for.
      check: raises ValueError or NotImplementedError for a strategy that cannot run.

    Returns:
      The strategy; why it has another mesh, in words, or "".
    """
    try:
        check(strategy)
    except (ValueError, NotImplementedError) as error:
        meshes = dividing_meshes(strategy.name, devices, lambda s: check(change(s)), most=1)
        if meshes:
            why = str(error).partition(": ")[2] or str(error)
            said = f"its mesh is {meshes[0]}, not {strategy.mesh} as usual: {why.split('. ')[0]}"
            return change(build(strategy.name, MeshSpec.parse(meshes[0]))), said.rstrip(".")
    return strategy, ""


def dividing_meshes(
    name: str, devices: int, check: Callable[[Strategy], object], most: int = 3
) -> tuple[str, ...]:
    """Return up to `most` meshes of so many devices that `check` takes, larger last axes first."""
    parts = name.split("+")
    if not set(parts) <= set(STRATEGIES):
        return ()
    axes = tuple(dict.fromkeys(axis for part in parts for axis in STRATEGIES[part].axes))

    def able(sizes: tuple[int, ...]) -> str:
        mesh = MeshSpec([(a, n) for a, n in zip(axes, sizes, strict=True) if n > 1])
        try:
            check(build(name, mesh))
        except (ValueError, NotImplementedError):
            return ""
        return str(mesh)

    tried = itertools.islice(_products(devices, len(axes)), _MOST_TRIED)
    return tuple(itertools.islice(filter(None, map(able, tried)), most))


def _products(number: int, factors: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to write a number as a product, larger last factors first."""
    if factors == 1:
        yield (number,)
        return
    for last in range(number, 0, -1):
        if number % last == 0:
            yield from ((*rest, last) for rest in _products(number // last, factors - 1))
