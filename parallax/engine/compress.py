"""Compression of a folder of dense weights into a folder of compressed ones."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from parallax.compression import parse_format
from parallax.compression.errors import weight_error
from parallax.distributed.devices import ordered_devices
from parallax.engine.assigning import assign_formats
from parallax.engine.compressed import CompressedFolder, CompressedLayer, CompressedMatrix
from parallax.engine.layer_formats import (
    Formats,
    check_formats,
    parse_layer_formats,
    store_layer,
)
from parallax.engine.weights import load_params
from parallax.models.block_errors import block_error, random_input
from parallax.models.compressed_folder import StoredModel, tensor_name, write_stored
from parallax.models.config import PARTS, ModelConfig
from parallax.models.new_folder import check_new
from parallax.models.parameters import layer_matrices
from parallax.programs.sharded_model import ShardedTransformer
from parallax.requests.naming import Compression, parse_compression, resolve_model, stored_model
from parallax.strategies.data_parallel import data_parallel
from parallax.workload import Workload


def compress(
    model: str | Path,
    compression: Compression | Sequence[Formats] = None,
    out: str | Path = "out",
    *,
    layer_formats: Sequence[str] = (),
    budget: int | str | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> CompressedFolder:
    """Compress a folder's weights and write them as devices will store them.

    Args:
      model: a folder with config.json and *.safetensors, or that of a training run.
      compression: formats of the matrices: one, or attention's and the MLP's joined by a comma,
        such as "int8,int8+2:4"; see `parallax.compression.parse_format`. Or a list of such
        pairs, one per layer.
      out: the folder to create. If all layers have the same formats, `px.generate(out, ...)` runs
        it under every strategy; `px.Deployment.load(out, ...)` runs any folder.
      layer_formats: formats of some layers, such as "0-3=int8,int8+2:4", which override
        `compression`; the model's own dtype leaves a matrix as it is.
      budget: in place of formats: bytes of all layers' matrices ("40MB", or a number), or a share
        of their dense bytes ("0.3x"). `assign_formats` then chooses each layer's formats;
        the damage that it minimizes is a proxy.
      on_progress: called with a line whenever something starts.

    Returns:
      Bytes before and after, the errors of every matrix's weights, and those of every block's
      output on random inputs.

    Raises:
      ValueError: a format is unknown or does not divide a size, there are no weights or they are
        compressed already, no formats meet the budget, or `out` exists.

    Cost: the first device holds the dense weights and one compressed layer. qwix rounds by the
      largest magnitude of a channel or group; sparsity keeps the largest magnitudes.
    """
    if stored_model(model) is not None:
        raise ValueError(f"{model}: the weights are compressed already. Give the dense model.")
    config, folder = resolve_model(model)
    if folder is None or config.compression is not None:
        raise ValueError(
            f"compress: no weights, got model {str(model)!r}. Give a folder with dense weights."
        )
    formats = _formats(config, compression, layer_formats, budget)
    stored = None if formats is None else StoredModel.of(config, formats)
    check_new(out)
    strategy = data_parallel(1)
    mesh = strategy.mesh.build(ordered_devices()[:1])
    on_progress(f"loading {folder}")
    dense = load_params(folder, ShardedTransformer(config, strategy, Workload(1, 1)), mesh)
    damages: tuple[float | None, ...] = (None,) * config.num_layers
    if stored is None:
        assert budget is not None
        chosen = assign_formats(config, dense["layers"], budget, on_progress=on_progress)
        stored, damages = StoredModel.of(config, chosen.formats), chosen.damages
    on_progress(f"writing {config.num_layers} layers to {out}")
    layers = _Layers(config, stored.formats, dense["layers"], damages)
    rest = {
        tensor_name(path): np.ascontiguousarray(x.get_value())
        for path, x in nnx.to_flat_state(dense)
        if path[0] != "layers"
    }
    write_stored(out, stored, dense, lambda: rest, layers, tokenizer_from=folder)
    rest_bytes = sum(x.nbytes for x in rest.values()) + layers.rest_bytes
    return CompressedFolder(
        Path(out), stored.config, layers.matrices(), tuple(layers.done), rest_bytes
    )


def _formats(
    config: ModelConfig, compression: Any, layer_formats: Sequence[str], budget: int | str | None
) -> tuple[Formats, ...] | None:
    """Return the formats of every layer; None where a budget chooses them."""
    given = compression is not None or bool(layer_formats)
    if given == (budget is not None):
        raise ValueError(
            f"compress: {'formats and a budget' if given else 'no formats and no budget'}. Give "
            "formats, such as int8, or a budget, such as 0.3x, that chooses them."
        )
    if not given:
        return None
    if compression is None or isinstance(compression, str):
        return parse_layer_formats(config, layer_formats, parse_compression(compression))
    if all(isinstance(one, str) for one in compression):
        pair = parse_compression(tuple(compression))
        return parse_layer_formats(config, layer_formats, pair)
    if layer_formats:
        raise ValueError("compress: layer_formats beside a pair for every layer. Give one of them.")
    pairs = [tuple(pair) for pair in compression]
    if any(len(pair) != 2 for pair in pairs) or len(pairs) != config.num_layers:
        raise ValueError(
            f"compress: expected a pair (attention, MLP) for each of {config.num_layers} layers, "
            f"got {compression!r}."
        )
    return check_formats(config, pairs)


class _Layers:
    """An iterator over compressed layers, one at a time, that records their errors."""

    def __init__(
        self, config: ModelConfig, formats: Sequence[Formats], dense: nnx.State,
        damages: Sequence[float | None],
    ):  # fmt: skip
        self.config, self.formats, self.dense, self.damages = config, formats, dense, damages
        self.done: list[CompressedLayer] = []
        self.rest_bytes = 0
        self._found: dict[tuple[str, str], list[tuple[int, int, int, float]]] = {}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        x_BLD = random_input(self.config)
        for number, pair in enumerate(self.formats):
            one = jax.tree.map(lambda w, n=number: w[n : n + 1], self.dense)
            packed = store_layer(self.config, one, pair)
            arrays = {
                ("layers", *path): np.ascontiguousarray(np.asarray(x.get_value())[0])
                for path, x in nnx.to_flat_state(packed)
            }
            dense: dict[Any, Any] = {
                ("layers", *path): x.get_value() for path, x in nnx.to_flat_state(one)
            }
            stored_bytes = 0
            for matrix in sorted(layer_matrices(self.config), key=lambda m: m.path):
                path = matrix.path
                form = parse_format(pair[PARTS.index(matrix.part)])
                size = sum(x.nbytes for p, x in arrays.items() if p[: len(path)] == path)
                error = float(weight_error(dense[path][0], form, matrix.inputs))
                row = (number, dense[path].nbytes, size, error)
                self._found.setdefault(("/".join(path[1:]), form.name), []).append(row)
                stored_bytes += size
            self.rest_bytes += sum(x.nbytes for x in arrays.values()) - stored_bytes
            error, _ = block_error(self.config, one, pair, x_BLD)
            self.done.append(CompressedLayer(pair, stored_bytes, error, self.damages[number]))
            yield {tensor_name(path, number): x for path, x in arrays.items()}

    def matrices(self) -> tuple[CompressedMatrix, ...]:
        """Return the compressed matrices, merged over layers by name and format."""
        return tuple(
            CompressedMatrix(
                name, form, tuple(r[0] for r in rows), sum(r[1] for r in rows),
                sum(r[2] for r in rows), max(r[3] for r in rows),
            )
            for (name, form), rows in self._found.items()
        )  # fmt: skip
