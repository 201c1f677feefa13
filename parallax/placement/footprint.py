"""Bytes of one layer on its device: weights by format, keys and values, activations, workspace."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallax.compression import parse_format
from parallax.models.config import PARTS, ModelConfig
from parallax.models.parameters import Parameter, layer_matrices, layer_parameters


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


def stored_bytes(matrix: Parameter, form: str) -> int:
    """Bytes of one layer's matrix, or of those of all its experts, in a format."""
    inputs, outputs, count = matrix.matrices()
    return count * parse_format(form).n_bytes(inputs, outputs)


def part_bytes(config: ModelConfig, part: str, form: str) -> int:
    """Bytes of one layer's attention or MLP matrices in a format; a router is not among them."""
    return sum(stored_bytes(matrix, form) for matrix in layer_matrices(config, part))


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
    others = (p for p in layer_parameters(config) if p.part is None)  # norms, biases, a router
    rest = sum(p.size for p in others) * config.item_bytes
    kv = 2 * cached * config.num_kv_heads * config.head_dim * config.item_bytes
    return Footprint(matrices + rest, kv, _activations(config, tokens), workspace, formats)


def _activations(config: ModelConfig, tokens: int) -> int:
    """Residual stream in and out beside the larger of queries, keys, values and the MLP's rows."""
    item, d = config.item_bytes, config.d_model
    heads, wide = (
        sum(m.matrices()[1] for m in layer_matrices(config, part) if m.reads_stream)
        for part in PARTS
    )
    passed = config.experts_per_token if config.num_experts else 1
    return tokens * item * (2 * d + max(heads, wide * passed))
