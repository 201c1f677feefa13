"""The totals of router statistics over microbatches and devices."""

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.experts import RouterStats
from parallax.parallel.varying import vary_over


def total_stats(
    stats: RouterStats, tokens: tuple[str, ...], alike: tuple[str, ...] = ()
) -> RouterStats:
    """Add up each device's RouterStats [M, layers, ...] to the totals [layers, ...].

    Args:
      stats: statistics with a leading M. Fields may be None.
      tokens: mesh axes that split the tokens: the counts of their devices add up.
      alike: mesh axes whose devices all counted the same tokens.

    Cost: an all-reduce of every field over all these axes.
    """
    repeats = 1
    for axis in alike:
        repeats *= lax.axis_size(axis)
    axes = (*tokens, *alike)

    def total(x):
        x = x.sum(0, dtype=x.dtype)
        if not axes:
            return x
        x = lax.psum(vary_over(x, axes), axes)
        return x // repeats if jnp.issubdtype(x.dtype, jnp.integer) else x / repeats

    margin = None if stats.smallest_margin is None else stats.smallest_margin.min(0)
    if axes and margin is not None:
        margin = lax.pmin(lax.stop_gradient(vary_over(margin, axes)), axes)
    totals = jax.tree.map(total, stats._replace(smallest_margin=None))
    return totals._replace(smallest_margin=margin)
