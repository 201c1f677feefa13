"""The bytes of a layer on its device: weights by format, KV cache, activations, workspace."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallax.compression import parse_format
from parallax.models.config import PARTS, ModelConfig
from parallax.models.parameters import Parameter, layer_matrices, layer_parameters


@dataclass(frozen=True)
class Footprint:
    """The bytes of one layer.

    Attributes:
      weights: matrices in their formats, with scales and positions, and norms and biases.
      kv: cached keys and values, or latents.
      activations: the peak of a pass through the layer.
      workspace: the workspace of libraries, as given.
      formats: the formats of attention's and of the MLP's matrices.
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
    """Return the bytes of a layer's matrix (of all experts, if it has experts) in a format."""
    inputs, outputs, count = matrix.matrices()
    return count * parse_format(form).n_bytes(inputs, outputs)


def part_bytes(config: ModelConfig, part: str, form: str) -> int:
    """Return the bytes of a layer's attention or MLP matrices, without router, in a format."""
    return sum(stored_bytes(matrix, form) for matrix in layer_matrices(config, part))


def layer_footprints(
    config: ModelConfig,
    formats: str | Sequence[tuple[str, str]],
    *,
    tokens: int = 0,
    cached_tokens: int = 0,
    workspace: int = 0,
) -> tuple[Footprint, ...]:
    """Return the bytes of every layer.

    Args:
      config: the model.
      formats: one format for all matrices, or (attention, MLP) for each layer; the model's own
        dtype leaves a matrix uncompressed.
      tokens: tokens of a microbatch in the layer.
      cached_tokens: tokens of all sequences whose keys and values are cached.
      workspace: bytes of libraries' workspace.

    Raises:
      ValueError: an unknown format, another number of formats than layers, or sizes that runs or
        groups do not divide.
    """
    if isinstance(formats, str):
        formats = [(formats, formats)] * config.num_layers
    if len(formats) != config.num_layers:
        raise ValueError(
            f"layer_footprints: {len(formats)} formats for {config.num_layers} layers. Give one, "
            "or one for each."
        )
    layers = [
        (config.of_dense_layers if number < config.dense_layers else config, (attention, mlp))
        for number, (attention, mlp) in enumerate(formats)
    ]
    known = {
        (of, pair): _layer(of, pair, tokens, cached_tokens, workspace)
        for of, pair in dict.fromkeys(layers)
    }
    return tuple(known[layer] for layer in layers)


def _layer(
    config: ModelConfig, formats: tuple[str, str], tokens: int, cached: int, workspace: int
) -> Footprint:
    if formats != (config.dtype, config.dtype):
        config.replace(compression=formats)  # ValueError for sizes that a format cannot store
    matrices = sum(part_bytes(config, *of) for of in zip(PARTS, formats, strict=True))
    others = (p for p in layer_parameters(config) if p.part is None)  # norms, biases, a router
    rest = sum(p.n_bytes(config.item_bytes) for p in others)
    kv = cached * config.cached_width * config.item_bytes
    return Footprint(matrices + rest, kv, _activations(config, tokens), workspace, formats)


def _activations(config: ModelConfig, tokens: int) -> int:
    """Return the bytes of the residual stream in and out, plus the larger of QKV and MLP rows."""
    item, d = config.item_bytes, config.d_model

    def wide(part: str, *, shared: bool = False) -> int:
        """Return the elements per token of the rows that a part's first matrices make."""
        first = (m for m in layer_matrices(config, part) if m.reads_stream)
        return sum(m.matrices()[1] for m in first if m.is_shared == shared)

    passed = config.experts_per_token if config.num_experts else 1
    mlp = wide("mlp") * passed + wide("mlp", shared=True)
    return tokens * item * (2 * d + max(wide("attention"), mlp))
