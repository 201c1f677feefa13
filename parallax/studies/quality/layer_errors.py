"""Errors of every matrix's product, and of every block, when weights are stored in a format."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parallax.compression import parse_format
from parallax.compression.errors import relative_error
from parallax.models.block_errors import block_error
from parallax.models.config import PARTS, ModelConfig
from parallax.models.parameters import Parameter, layer_matrices
from parallax.models.rope import token_positions
from parallax.models.transformer import abstract_transformer
from parallax.parallel.split import UNSPLIT, Split
from parallax.studies.quality.results import BlockError, MatrixError

_OUTPUTS_AT_ONCE = 2048  # outputs of a wide matrix, which are independent of each other


@dataclass(frozen=True)
class _Recording(Split):
    """Records each matrix's input activations, keyed by its path."""

    matrices: tuple[Parameter, ...] = ()
    seen: dict[tuple[str, ...], jax.Array] = field(default_factory=dict, compare=False)

    def enter(self, x_BLD, *names):
        part = "mlp" if "mlp" in names else "attention"
        self.seen.update(
            {m.path: x_BLD for m in self.matrices if m.reads_stream and m.part == part}
        )
        return UNSPLIT.enter(x_BLD, *names)

    def contract(self, x, w, spec, *, over):
        over = (over,) if isinstance(over, str) else over
        self.seen.update({m.path: x for m in self.matrices if m.input_axes == over})
        return UNSPLIT.contract(x, w, spec, over=over)


def matrix_inputs(
    config: ModelConfig, params: nnx.State, tokens: np.ndarray
) -> Iterator[tuple[int, Parameter, jax.Array, jax.Array]]:
    """Yield the layer number, matrix, weight and input activations of every matrix of every layer.

    Args:
      config, params: a Transformer without experts, on one device.
      tokens: [B, L].
    """
    model: Any = nnx.merge(abstract_transformer(config)[0], params)
    x = model.embed(jnp.asarray(tokens), None, UNSPLIT)
    positions = token_positions(tokens.shape[1], None)
    graph, stacked = nnx.split(model.layers)
    for layer in range(config.num_layers):
        block = nnx.merge(graph, jax.tree.map(lambda w, layer=layer: w[layer], stacked))
        recording = _Recording(matrices=layer_matrices(config))
        kind = config.kinds[layer % len(config.kinds)]
        x, _ = block(x, model.angles(positions, kind, UNSPLIT), None, recording, kind=kind)
        for matrix in recording.matrices:
            weight = functools.reduce(getattr, matrix.path[1:], block)[...]
            yield layer, matrix, weight, recording.seen[matrix.path]


def trained_errors(
    config: ModelConfig, params: nnx.State, tokens: np.ndarray, formats: tuple[str, ...]
) -> tuple[MatrixError, ...]:
    """Compute the errors of every layer and matrix of a trained model, on its own activations."""
    return tuple(
        MatrixError(
            "trained", layer, m.path[-1], tuple(w.shape), form,
            relative_error(w, parse_format(form), x, m.inputs),
        )
        for layer, m, w, x in matrix_inputs(config, params, tokens)
        for form in formats
    )  # fmt: skip


def block_errors(
    config: ModelConfig, params: nnx.State, tokens: np.ndarray,
    formats: Iterable[tuple[str, str]],
) -> tuple[BlockError, ...]:  # fmt: skip
    """Compute the error of every block's output, given the dense model's input, per format pair.

    Args:
      config, params: a Transformer on one device, with stacked layers.
      tokens: [B, L].
    """
    model: Any = nnx.merge(abstract_transformer(config)[0], params)
    x_BLD = model.embed(jnp.asarray(tokens), None, UNSPLIT)
    errors, pairs = [], tuple(formats)
    for layer in range(config.num_layers):
        one = jax.tree.map(lambda w, layer=layer: w[layer : layer + 1], params["layers"])
        y_BLD = x_BLD
        for pair in pairs:
            error, y_BLD = block_error(config, one, pair, x_BLD)
            errors.append(BlockError(layer, pair, error))
        x_BLD = y_BLD
    return tuple(errors)


def normal_errors(
    config: ModelConfig, formats: tuple[str, ...], tokens: int = 64, seed: int = 0
) -> tuple[MatrixError, ...]:
    """Compute the error of one matrix per shape of a full-size model, with normal random values.

    Both weights and activations are drawn from a normal distribution.

    Cost: the largest matrix in float32, a part of its outputs at a time.
    """
    shapes = {}
    for part in PARTS:
        for matrix in layer_matrices(config, part):
            shapes.setdefault(matrix.matrices()[:2], part)
    return tuple(
        MatrixError("normal", None, part, shape, form, _normal_error(shape, form, tokens, seed))
        for shape, part in shapes.items()
        for form in formats
    )


def _normal_error(shape: tuple[int, int], form: str, tokens: int, seed: int) -> float:
    """Compute `relative_error` of the whole matrix from pieces of its outputs."""
    inputs, outputs = shape
    key_x, key_w = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(key_x, (tokens, inputs), jnp.float32)
    squares = []
    for first in range(0, outputs, _OUTPUTS_AT_ONCE):
        count = min(_OUTPUTS_AT_ONCE, outputs - first)
        w = jax.random.normal(jax.random.fold_in(key_w, first), (inputs, count), jnp.float32)
        # Outputs have equal magnitude, so squares of the pieces' relative errors average.
        squares.append((relative_error(w * inputs**-0.5, parse_format(form), x) ** 2, count))
    return float(np.sqrt(sum(s * n for s, n in squares) / outputs))
