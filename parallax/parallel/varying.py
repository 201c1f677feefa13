"""Manual-axes types: over which mesh axes a value differs between devices."""

from typing import Any

import jax
from jax import lax


def varying_axes(x) -> frozenset[str]:
    """Mesh axes over which `x` is typed as different on each device; empty outside shard_map."""
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def vary_over(x, axes):
    """`x` typed as varying over `axes` too. No communication forward; backward sums over them."""
    missing = tuple(a for a in axes if a not in varying_axes(x))
    return lax.pcast(x, missing, to="varying") if missing else x


def vary_alike(*arrays: Any, also: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """All arrays (None passes) typed as varying over the union of their axes, and over `also`."""
    union = set(also)
    for x in arrays:
        if x is not None:
            union |= varying_axes(x)
    return tuple(None if x is None else vary_over(x, sorted(union)) for x in arrays)
