"""Statistics of routers, of microbatches and devices together."""

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.experts import RouterStats
from parallax.parallel.varying import vary_over


def total_stats(
    stats: RouterStats, tokens: tuple[str, ...], alike: tuple[str, ...] = ()
) -> RouterStats:
    """RouterStats [M, layers, ...] of microbatches on each device -> [layers, ...] of all.

    Args:
      stats: with a leading M. Fields may be None.
      tokens: mesh axes that split the tokens: counts of their devices add up.
      alike: mesh axes whose devices counted the same tokens, each of them all.

    Cost: an all-reduce of every field over all these axes.
    """
    once = 1
    for axis in alike:
        once *= lax.axis_size(axis)
    axes = (*tokens, *alike)

    def total(x):
        x = x.sum(0, dtype=x.dtype)
        if not axes:
            return x
        x = lax.psum(vary_over(x, axes), axes)
        return x // once if jnp.issubdtype(x.dtype, jnp.integer) else x / once

    margin = None if stats.smallest_margin is None else stats.smallest_margin.min(0)
    if axes and margin is not None:
        margin = lax.pmin(lax.stop_gradient(vary_over(margin, axes)), axes)
    totals = jax.tree.map(total, stats._replace(smallest_margin=None))
    return totals._replace(smallest_margin=margin)
