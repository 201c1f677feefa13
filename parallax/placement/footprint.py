"""Bytes of one layer on its device: weights by format, keys and values, activations, workspace."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallax.compression import parse_format
from parallax.models.config import ModelConfig


@dataclass(frozen=True)
class Footprint:
    """One layer, bytes.

    Attributes:
      weights: matrices in their format, with scales and positions, and norms and biases.
      kv: keys and values of all tokens at hand.
      activations: what a pass through the layer holds at most.
      workspace: for libraries, as given.
      formats: of the attention's matrices, and of the MLP's.
    """

    weights: int
    kv: int
    activations: int
    workspace: int
    formats: tuple[str, str]

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations + self.workspace


def attention_matrices(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of queries, keys, values and output."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    d = config.d_model
    return (d, q), (d, kv), (d, kv), (q, d)


def mlp_matrices(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of all matrices of all experts; a router stays in the model's dtype."""
    d, f = config.d_model, config.d_ff
    one = ((d, f), (d, f), (f, d)) if config.mlp == "gated" else ((d, f), (f, d))
    return one * max(1, config.num_experts)


PARTS = ("attention", "mlp")


def part_bytes(config: ModelConfig, part: str, form: str) -> int:
    """Of one layer's attention or MLP matrices in a format."""
    matrices = (attention_matrices, mlp_matrices)[PARTS.index(part)](config)
    return sum(parse_format(form).n_bytes(*matrix) for matrix in matrices)


def layer_footprints(
    config: ModelConfig,
    formats: str | Sequence[tuple[str, str]],
    *,
    tokens: int = 0,
    cached_tokens: int = 0,
    workspace: int = 0,
) -> tuple[Footprint, ...]:
    """Every layer's bytes.

    Args:
      config: the model.
      formats: one for all matrices, or a layer's (attention, MLP) each; the
        model's own dtype leaves a matrix as it is.
      tokens: of a microbatch in the layer.
      cached_tokens: whose keys and values are at hand, of all sequences.
      workspace: bytes.

    Raises:
      ValueError: an unknown format, as many formats as there are no layers, sizes that runs or
        groups do not divide.
    """
    if isinstance(formats, str):
        formats = [(formats, formats)] * config.num_layers
    if len(formats) != config.num_layers:
        raise ValueError(
            f"layer_footprints: {len(formats)} formats for {config.num_layers} layers. Give one, "
            "or one for each."
        )
    known: dict[tuple[str, str], Footprint] = {}
    pairs = [(attention, mlp) for attention, mlp in formats]
    for pair in dict.fromkeys(pairs):
        known[pair] = _layer(config, pair, tokens, cached_tokens, workspace)
    return tuple(known[pair] for pair in pairs)


def _layer(
    config: ModelConfig, formats: tuple[str, str], tokens: int, cached: int, workspace: int
) -> Footprint:
    if formats != (config.dtype, config.dtype):
        config.replace(compression=formats)  # what a model cannot store has no bytes
    matrices = sum(part_bytes(config, *of) for of in zip(PARTS, formats, strict=True))
    one, two = (config.replace(num_layers=n).num_params for n in (1, 2))
    in_matrices = sum(a * b for a, b in (*attention_matrices(config), *mlp_matrices(config)))
    rest = (two - one - in_matrices) * config.item_bytes  # norms, biases, a router
    kv = 2 * cached * config.num_kv_heads * config.head_dim * config.item_bytes
    return Footprint(matrices + rest, kv, _activations(config, tokens), workspace, formats)


def _activations(config: ModelConfig, tokens: int) -> int:
    """Residual stream in and out beside the larger of queries, keys, values and the MLP's rows."""
    item, d = config.item_bytes, config.d_model
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    wide = (
        config.d_ff
        * (2 if config.mlp == "gated" else 1)
        * max(1, config.experts_per_token if config.num_experts else 1)
    )
    return tokens * item * (2 * d + max(heads, wide))
