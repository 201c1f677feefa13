"""Slabs of a layer under a budget, and the bytes that serving microbatches slab by slab saves."""

from dataclasses import dataclass

from parallax.compression import parse_format
from parallax.models.config import ModelConfig
from parallax.models.parameters import layer_matrices
from parallax.parallel.tiles import Tiles

_SUM_BYTES = 4  # of one element of the slabs' sum; 8 in a float64 model


def tiles_under(
    config: ModelConfig,
    budget: int,
    *,
    formats: tuple[str, str] | None = None,
    heads: int = 1,
    width: int = 1,
) -> Tiles:
    """The fewest slabs of a dense layer of which each fits the budget.

    Args:
      config: the model.
      budget: bytes a slab may take, such as `parse_budget("l2", gpu).n_bytes`.
      formats: of the attention's matrices and of the MLP's; None is the model's dtype.
      heads, width: devices over which heads and the MLP's width are split.

    Of attention the matrices of queries, keys and values have to fit together, and then the output
    matrix alone: attention is between them. Of an MLP all of them.

    Raises:
      ValueError: experts, or a slab of one key/value head (or of one column) that does not fit.
    """
    if config.num_experts:
        raise ValueError(
            f"tiles_under: model '{config.name}' has experts, which are not cut into slabs."
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
        """Of one tile's matrices that read the residual stream, and of those that write it."""
        read = written = 0
        for matrix in layer_matrices(config, part):
            inputs, outputs, _ = matrix.matrices()
            if matrix.reads_stream:
                read += _n_bytes(form, inputs, outputs // cut)
            else:
                written += _n_bytes(form, inputs // cut, outputs)
        return read, written

    def attention_slab(count: int) -> int:
        return max(tile_bytes("attention", of_attention, count * heads))

    def mlp_slab(count: int) -> int:
        return sum(tile_bytes("mlp", of_mlp, count * width))

    return Tiles(
        _fewest(attention_slab, kv_heads, budget, f"{config.name}: one key/value head's attention"),
        _fewest(mlp_slab, columns, budget, f"{config.name}: one column of the MLP"),
    )


@dataclass(frozen=True)
class TileTraffic:
    """Device memory of one layer and one round, bytes (tag: derived).

    Attributes:
      weights: of the layer on its device.
      once_each: weights as the ordinary order reads them: once a microbatch.
      once_a_round: weights slab by slab: read once, and for each copy of a slab written once.
      activations: rows and sums that microbatches read and write once a slab, where no cache holds
        them.
      held: of them, what would have to stay in the cache beside a slab for `activations` to be
        nothing.
    """

    weights: int
    once_each: int
    once_a_round: int
    activations: int
    held: int

    @property
    def saved(self) -> int:
        """Bytes saved where no cache holds activations; negative where tiling is a loss."""
        return self.once_each - self.once_a_round - self.activations

    @property
    def saved_at_most(self) -> int:
        """Bytes saved where the cache holds activations beside the slab."""
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
    """What one layer and one round read and write in each order.

    Args:
      config: of the layer.
      tiles: slabs of it.
      tokens: of one microbatch on one device.
      microbatches: of the round.
      weights: bytes of the layer's matrices on the device; None is all of them, uncompressed.
      copies: of each slab, made beside it: one as XLA compiles it, none in a kernel of its own.

    Tiling saves bytes up to about `most_tokens` tokens a microbatch.
    """
    if weights is None:
        weights = sum(m.size for m in layer_matrices(config)) * config.item_bytes
    wide = max(_SUM_BYTES, config.item_bytes)
    row = config.d_model * (config.item_bytes + 2 * wide)
    slabs = tiles.attention + tiles.mlp
    return TileTraffic(
        weights=weights,
        once_each=microbatches * weights,
        once_a_round=(1 + copies) * weights,
        activations=slabs * microbatches * tokens * row,
        held=microbatches * tokens * config.d_model * (config.item_bytes + wide),
    )


def most_tokens(config: ModelConfig, tiles: Tiles, microbatches: int, *, copies: int = 1) -> float:
    """Tokens of a microbatch up to which tiling saves bytes, where no cache holds activations: a
    slab's bytes over those of a row, times the share of readings that a round saves."""
    one = tile_traffic(config, tiles, 1, microbatches, copies=copies)
    return max(0.0, one.saved_at_most / one.activations)


def _n_bytes(name: str, inputs: int, outputs: int) -> int:
    return parse_format(name).n_bytes(inputs, outputs)


def _fewest(slab, most: int, budget: int, where: str) -> int:
    """The smallest divisor of `most` whose slabs fit."""
    least, cannot = 0, None
    for count in range(1, most + 1):
        if most % count:
            continue
        try:
            least = slab(count)
        except ValueError as error:
            cannot = error  # this format has no slabs of that size
            continue
        if least <= budget:
            return count
    if not least and cannot is not None:
        raise cannot
    raise ValueError(
        f"tiles_under: {where} takes {least} bytes, the budget is {budget}. Compress it, or raise "
        "the budget."
    )
