"""The cache-tiled form of another strategy, which reads each layer's weights tile by tile."""

from parallax.parallel.layer_parts import CacheTiled, Pipeline, Scan
from parallax.strategy import Strategy


def cache_tiled(
    strategy: Strategy, attention: int, mlp: int, *, round: int | None = None
) -> Strategy:
    """Run each weight tile of a layer on all microbatches of a group before the next tile.

    Args:
      strategy: such as `layerwise(16)`, whose stages then hand on whole microbatch groups, or
        `data_parallel(16)`.
      attention, mlp: weight tiles per layer; `placement.tiles_under` computes them from a budget.
      round: the most microbatches in a group; see `CacheTiled`.

    With `.replace(kernels="mosaic")` the MLP of a decoding step is one kernel that reads each
    weight once, straight from the stack of layers; `attention=1, mlp=1` then launches the fewest
    kernels.

    Raises:
      ValueError: a strategy that is tiled already.

    Cost: weights are read once per microbatch group instead of once per microbatch;
      `placement.tile_traffic` gives the extra activations that microbatches read and write.
    """
    if not isinstance(strategy.layers, Scan | Pipeline):
        raise ValueError(
            f"cache_tiled: strategy '{strategy.name}' has layers={strategy.layers}. Give one with "
            "layers=Scan() or Pipeline(...)."
        )
    return strategy.replace(
        name=f"{strategy.name}_tiled",
        layers=CacheTiled(attention, mlp, round, inner=strategy.layers),
    )
