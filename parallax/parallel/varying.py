"""The varying mesh axes of values: those over which a value differs between devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def varying_axes(x) -> frozenset[str]:
    """Return the mesh axes over which `x` is typed as varying; empty outside shard_map."""
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def vary_over(x, axes):
    """Type `x` as varying over `axes` too. Nothing moves forward; backward sums over them."""
    missing = tuple(a for a in axes if a not in varying_axes(x))
    return lax.pcast(x, missing, to="varying") if missing else x


def vary_alike(*arrays: Any, also: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """Type all arrays as varying over the union of their axes and `also`; None stays None."""
    union = set(also)
    for x in arrays:
        if x is not None:
            union |= varying_axes(x)
    return tuple(None if x is None else vary_over(x, sorted(union)) for x in arrays)


def reverse_only[T](name: str, call: Callable[[], T]) -> T:
    """Call a function with a gradient of its own; a forward-mode derivative of it is refused.

    JAX says so where there is a `jax.jit` around it, and "unhashable type" where there is none.

    Raises:
      TypeError: the call is differentiated in forward mode.
    """
    try:
        return call()
    except TypeError as error:
        if "Unhashable" not in str(error):
            raise
        raise TypeError(
            f"{name}: it is differentiated in forward mode (jax.jvp, jax.linearize, jax.jacfwd), "
            "and has a derivative in reverse mode only. Use jax.grad, jax.vjp or jax.jacrev."
        ) from None
