"""Any strategy with its layers in the order of cache tiling."""

from parallax.parallel.layer_parts import CacheTiled, Pipeline, Scan
from parallax.strategy import Strategy


def cache_tiled(
    strategy: Strategy, attention: int, mlp: int, *, round: int | None = None
) -> Strategy:
    """A slab of each layer's weights serves all microbatches of a round before the next slab.

    Args:
      strategy: such as `layerwise(16)`, whose stages then hand on rounds, or `data_parallel(16)`.
      attention, mlp: slabs of a layer; `placement.tiles_under` computes them from a budget.
      round: microbatches of a round, at most; see `CacheTiled`.

    With `.replace(kernels="mosaic")` the MLP of a decoding step is one kernel that reads each
    weight once, straight from the stack of layers; `attention=1, mlp=1` then launches the least.

    Raises:
      ValueError: a strategy that is tiled already.

    Cost: weights once a round instead of once a microbatch; what microbatches read and write more
      of activations is in `placement.tile_traffic`.
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
