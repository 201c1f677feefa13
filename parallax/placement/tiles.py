"""The weight tiles of a layer under a budget, and the memory traffic that they save."""

from dataclasses import dataclass

from parallax.compression import parse_format
from parallax.models.config import ModelConfig
from parallax.models.parameters import layer_matrices
from parallax.parallel.tiles import Tiles

_SUM_BYTES = 4  # bytes per element of the sum over weight tiles; 8 in a float64 model


def tiles_under(
    config: ModelConfig,
    budget: int,
    *,
    formats: tuple[str, str] | None = None,
    heads: int = 1,
    width: int = 1,
) -> Tiles:
    """Return the fewest weight tiles of a dense layer that each fit the budget.

    Args:
      config: the model.
      budget: the most bytes per weight tile, such as `parse_budget("l2", gpu).n_bytes`.
      formats: formats of attention's and of the MLP's matrices; None is the model's dtype.
      heads, width: devices over which heads and the MLP's width are split.

    In attention, the matrices of queries, keys and values have to fit together (those that make
    latents are whole in every tile), and the output matrix on its own, since attention runs between
    them. In an MLP, all matrices have to fit
    together.

    Raises:
      ValueError: a model with experts, or a tile of one key/value head (or one column) that does
        not fit.
    """
    if config.num_experts:
        raise ValueError(
            f"tiles_under: model '{config.name}' has experts, which weight tiles do not support."
        )
    for name, parts, whole in (
        ("heads", heads, config.num_kv_heads),
        ("width", width, config.d_ff),
    ):
        if parts < 1 or whole % parts:
            raise ValueError(
                f"tiles_under: {name}={parts} devices do not divide the model's {whole}. Use a "
                f"divisor of {whole}."
            )
    of_attention, of_mlp = formats or (config.dtype, config.dtype)
    kv_heads, columns = config.num_kv_heads // heads, config.d_ff // width

    def tile_bytes(part: str, form: str, cut: int) -> tuple[int, int]:
        """Return a tile's bytes in matrices that read the residual stream, and that write it."""
        read = written = 0
        for matrix in layer_matrices(config, part):
            inputs, outputs, _ = matrix.matrices()
            if matrix.reads_stream:
                own = cut if any(matrix.axes[1:]) else 1
                read += _n_bytes(form, inputs, outputs // own)
            else:
                written += _n_bytes(form, inputs // cut, outputs)
        return read, written

    def attention_tile(count: int) -> int:
        return max(tile_bytes("attention", of_attention, count * heads))

    def mlp_tile(count: int) -> int:
        return sum(tile_bytes("mlp", of_mlp, count * width))

    return Tiles(
        _fewest(attention_tile, kv_heads, budget, f"{config.name}: one key/value head's attention"),
        _fewest(mlp_tile, columns, budget, f"{config.name}: one column of the MLP"),
    )


@dataclass(frozen=True)
class TileTraffic:
    """The device memory traffic of one layer and one microbatch group, bytes (tag: derived).

    Attributes:
      weights: weights of the layer on its device.
      once_each: weights in the ordinary order: read once per microbatch.
      once_a_round: weights tile by tile: read once per group, and written once per copy of a tile.
      activations: rows and sums that microbatches read and write once per tile, if no cache holds
        them.
      held: activations that would have to stay in the cache beside a tile for `activations` to be
        zero.
    """

    weights: int
    once_each: int
    once_a_round: int
    activations: int
    held: int

    @property
    def saved(self) -> int:
        """The bytes saved if no cache holds activations; negative if tiling is a loss."""
        return self.once_each - self.once_a_round - self.activations

    @property
    def saved_at_most(self) -> int:
        """The bytes saved if the cache holds activations beside the weight tile."""
        return self.once_each - self.once_a_round


def tile_traffic(
    config: ModelConfig,
    tiles: Tiles,
    tokens: int,
    microbatches: int,
    *,
    weights: int | None = None,
    copies: int = 1,
) -> TileTraffic:
    """Return the memory traffic of one layer and one microbatch group in each order.

    Args:
      config: the model.
      tiles: weight tiles of the layer.
      tokens: tokens of one microbatch on one device.
      microbatches: microbatches in the group.
      weights: bytes of the layer's matrices on the device; None is all of them, uncompressed.
      copies: copies made of each tile: one as XLA compiles it, none in a dedicated kernel.

    Tiling saves bytes up to about `most_tokens` tokens per microbatch.
    """
    if weights is None:
        weights = sum(m.size for m in layer_matrices(config)) * config.item_bytes
    wide = max(_SUM_BYTES, config.item_bytes)
    row = config.d_model * (config.item_bytes + 2 * wide)
    count = tiles.attention + tiles.mlp
    return TileTraffic(
        weights=weights,
        once_each=microbatches * weights,
        once_a_round=(1 + copies) * weights,
        activations=count * microbatches * tokens * row,
        held=microbatches * tokens * config.d_model * (config.item_bytes + wide),
    )


def most_tokens(config: ModelConfig, tiles: Tiles, microbatches: int, *, copies: int = 1) -> float:
    """Return the tokens per microbatch up to which tiling saves bytes, without a cache.

    It is a weight tile's bytes over those of a row of activations, times the share of reads that a
    microbatch group saves.
    """
    one = tile_traffic(config, tiles, 1, microbatches, copies=copies)
    return max(0.0, one.saved_at_most / one.activations)


def _n_bytes(name: str, inputs: int, outputs: int) -> int:
    return parse_format(name).n_bytes(inputs, outputs)


def _fewest(tile_bytes, most: int, budget: int, name: str) -> int:
    """Return the smallest divisor of `most` whose weight tiles fit."""
    least, cannot = 0, None
    for count in range(1, most + 1):
        if most % count:
            continue
        try:
            least = tile_bytes(count)
        except ValueError as error:
            cannot = error  # the format cannot store a tile of that size
            continue
        if least <= budget:
            return count
    if not least and cannot is not None:
        raise cannot
    raise ValueError(
        f"tiles_under: {name} takes {least} bytes, the budget is {budget}. Compress it, or raise "
        "the budget."
    )
