"""The loading of a folder's weights onto devices, each device its own shards."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from parallax.distributed.agreement import together
from parallax.distributed.processes import process_count, process_index
from parallax.distributed.shared_reads import gather_replicas, split_replicas
from parallax.models.config import ModelConfig
from parallax.models.huggingface.configs import family_in
from parallax.models.huggingface.files import TensorFiles, check_names, find_tensors
from parallax.models.huggingface.names import CONSTANTS, HEAD, sizes_of
from parallax.models.huggingface.tensors import Index, Piece, shapes_of
from parallax.models.huggingface.unpacking import unpacked
from parallax.parallel.stage_layers import layers_in_place


class Placed(Protocol):
    """A sharded model, in practice a `ShardedTransformer`.

    Attributes:
      config: the model.
      shapes, specs: States of the parameters' shapes and PartitionSpecs.
      groups: the number of layers of each stage.
      chunks: the number of chunks of each stage.
    """

    @property
    def config(self) -> ModelConfig: ...

    # Any, because pyright rejects a cached_property for a property of the same type.
    @property
    def shapes(self) -> Any: ...
    @property
    def specs(self) -> Any: ...
    @property
    def groups(self) -> Any: ...
    @property
    def chunks(self) -> int: ...


def load(folder: str | Path, model: Placed, mesh) -> nnx.State:
    """Load a folder's weights as parameters under a strategy.

    Args:
      folder: a folder with *.safetensors that belong to `model.config` (`read_config`).
      model: a `ShardedTransformer`; weights are cast to its config's dtype.
      mesh: real or virtual devices.

    Returns:
      Parameters with the strategy's shardings.

    Raises:
      ValueError: tensors that are missing, unexpected or of another shape, or a broken file.

    Cost: a shard is read from the files once for all devices that hold it. What several processes
      hold, each reads a part of, and an all-gather of one parameter at a time exchanges the parts.
      Besides the arrays on devices, the host holds one shard of one parameter at a time.

    Weights in MXFP4 and FP8 (`read_config` accepts them where a family has them) are unpacked to
    the config's dtype, shard by shard. Tensors of parts that this model is not (vision, prediction
    of tokens after the next) are not read.
    """
    config = model.config
    files, pieces = together(f"the weights in {folder}", lambda: checked_tensors(folder, config))
    by_leaf: dict[tuple[str, ...], dict[tuple[int, ...], Piece]] = {}
    for piece in pieces:
        by_leaf.setdefault(piece.leaf, {})[piece.at] = piece
    rows = layers_in_place(model.groups, model.chunks)

    def leaf(path, shape):
        sharding = NamedSharding(mesh, specs[path].get_value())
        read = _Shards(files, by_leaf[path], sizes_of(config), rows, path[0] == "layers")
        return shape.replace(on_devices(shape.get_value(), sharding, read, read.cheap_dims()))

    specs = dict(nnx.to_flat_state(model.specs))
    return nnx.from_flat_state(
        [(path, leaf(path, x)) for path, x in nnx.to_flat_state(model.shapes)]
    )


def checked_tensors(folder: str | Path, config: ModelConfig) -> tuple[TensorFiles, list[Piece]]:
    """Return the tensors of a folder, and their pieces, once they are known to be the model's."""
    family = family_in(folder, config)
    pieces = list(family.tensors(config))
    files = unpacked(_our_names(find_tensors(folder), pieces[0].name))
    expected = shapes_of(pieces, sizes_of(config))
    if config.tie_embeddings and HEAD in files.shapes:
        expected[HEAD] = expected[pieces[0].name]
    check_names(files, expected, CONSTANTS, beside=family.ignored(config))
    if HEAD in expected and config.tie_embeddings:
        _check_tied(files, pieces[0].name)
    return files, pieces


def on_devices(
    like: Any, sharding: NamedSharding, read: "Shards", dims: Sequence[int] = ()
) -> jax.Array:
    """Make one parameter on its devices, shard by shard; all processes have to call it.

    Args:
      like: shape and dtype.
      sharding: the sharding.
      read: the source of its slices.
      dims: the dims whose slices are cheapest to read, cheapest first; () is their order.
    """
    split = split_replicas(sharding, like.shape, like.dtype.itemsize, dims)
    holders: dict[Index, list] = {}
    for device, index in split.addressable_devices_indices_map(like.shape).items():
        assert index is not None
        whole = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, like.shape, strict=True))
        holders.setdefault(whole, []).append(device)
    arrays = []
    for index, devices in holders.items():
        shard = read.shard(index, like.dtype)
        arrays += [jax.device_put(shard, device) for device in devices]
        jax.block_until_ready(arrays)
    parts = jax.make_array_from_single_device_arrays(like.shape, split, arrays)
    return gather_replicas(parts, sharding)


class Shards(Protocol):
    """The source of one parameter's slices."""

    def shard(self, index: Index, dtype) -> np.ndarray: ...


class _Shards:
    """The reader of one of our parameters' slices."""

    def __init__(self, files: TensorFiles, pieces: dict, sizes: dict, rows: np.ndarray, stacked):
        self.files, self.pieces, self.sizes, self.rows = files, pieces, sizes, rows
        self.stacked = stacked

    def cheap_dims(self) -> list[int]:
        """Return the dims of which a slice is few long runs of bytes in a file, longest first."""
        at, piece = next(iter(self.pieces.items()))
        merged = [dims.replace("*", "") for dims in piece.layout.theirs]
        first = [len(at) + piece.layout.ours.index(dims[0]) for dims in merged]
        return [*range(len(at)), *first]

    def shard(self, index: Index, dtype) -> np.ndarray:
        """Read a slice, with zeros in padding layers and columns."""
        out = np.zeros([s.stop - s.start for s in index], dtype)
        leading = len(next(iter(self.pieces)))
        for at in np.ndindex(*out.shape[:leading]):
            wanted = [int(i) + s.start for i, s in zip(at, index, strict=False)]
            if self.stacked:
                wanted[0] = int(self.rows[wanted[0]])
                if wanted[0] < 0:
                    continue
            self._fill(out[at], self.pieces[tuple(wanted)], index[leading:])
        return out

    def _fill(self, out: np.ndarray, piece: Piece, index: Index) -> None:
        layout = piece.layout
        real = [self.sizes[d] for d in layout.ours]
        index = tuple(
            slice(min(s.start, n), min(s.stop, n)) for s, n in zip(index, real, strict=True)
        )
        if not math.prod(s.stop - s.start for s in index):
            return
        x = self.files.read(piece.name, layout.cut(self.sizes, index))
        x = layout.take(x, self.sizes, index)
        out[tuple(slice(0, n) for n in x.shape)] = x


def _our_names(files: TensorFiles, table: str) -> TensorFiles:
    """Return a folder's tensors under the family's names, whose first is the token table's.

    Files of a model without its head lack the start of all names; those of a model inside a larger
    one have another.
    """
    start, _, end = table.partition(".")
    found = [name.removesuffix(end) for name in files.shapes if f".{name}".endswith(f".{end}")]
    if len(found) != 1 or found[0] == f"{start}.":
        return files
    theirs = found[0]
    names = {
        name: f"{start}.{name.removeprefix(theirs)}"
        for name in files.shapes
        if name.startswith(theirs) and not name.startswith(HEAD)
    }
    names |= {name: HEAD for name in files.shapes if name.endswith(f".{HEAD}")}
    return files.renamed(names)


def _check_tied(files: TensorFiles, table: str, rows: int = 4096) -> None:
    """Raise ValueError if a folder's second copy of a tied unembedding differs from the table.

    Each process compares its share of the rows.
    """
    height, width = files.shapes[table]
    for row in range(rows * process_index(), height, rows * process_count()):
        index = slice(row, min(row + rows, height)), slice(0, width)
        if not np.array_equal(files.read(table, index), files.read(HEAD, index)):
            raise ValueError(
                f"{files.folder}: {HEAD} differs from {table}, and config.json says that they are "
                "one (tie_word_embeddings). Set it to false there to use both."
            )
