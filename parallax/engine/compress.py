"""A folder of dense weights made into a folder of compressed ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.engine.weights import compress_on, load_params
from parallax.models.compressed_files import save_compressed
from parallax.models.compressing import packed_weights
from parallax.models.config import ModelConfig
from parallax.models.packed_weight import PackedWeight
from parallax.naming import Compression, resolve_model
from parallax.spmd import ShardedTransformer
from parallax.strategies.data_parallel import data_parallel
from parallax.workload import Workload


@dataclass(frozen=True)
class CompressedMatrix:
    """One matrix of all layers.

    Attributes:
      name: such as "mlp/up_DF".
      form: its format's name.
      dense_bytes, stored_bytes: of all layers.
      error: relative L2 of the stored weights against the dense ones, of the worst layer; measured.
    """

    name: str
    form: str
    dense_bytes: int
    stored_bytes: int
    error: float


@dataclass(frozen=True)
class CompressedFolder:
    """What `compress` wrote.

    Attributes:
      folder: where.
      config: the model, with its formats.
      matrices: what was compressed.
      rest_bytes: what was not: tables, norms, biases, routers.
    """

    folder: Path
    config: ModelConfig
    matrices: tuple[CompressedMatrix, ...]
    rest_bytes: int

    @property
    def dense_bytes(self) -> int:
        """Of the whole model before."""
        return self.rest_bytes + sum(m.dense_bytes for m in self.matrices)

    @property
    def stored_bytes(self) -> int:
        """Of the whole model now."""
        return self.rest_bytes + sum(m.stored_bytes for m in self.matrices)


def compress(
    model: str | Path,
    compression: Compression,
    out: str | Path,
    *,
    on_progress: Callable[[str], None] = lambda line: None,
) -> CompressedFolder:
    """Compresses a folder's weights and writes them, as they will lie on devices.

    Args:
      model: a folder with config.json and *.safetensors, or of a training run.
      compression: formats of the matrices: one, or attention's and the MLP's joined by a comma,
        such as "int8,int8+2:4"; see `parallax.compression.parse_format`.
      out: made here; `px.generate(out, ...)` and every strategy run it.
      on_progress: called with a line whenever something starts.

    Returns:
      Bytes before and after, and the error of every matrix.

    Raises:
      ValueError: an unknown format, sizes it does not divide, no weights, or `out` exists.

    Cost: the dense and the compressed weights on the first device; rounding is qwix's, by the
      largest magnitude of a channel or group; sparsity keeps the largest magnitudes.
    """
    config, folder = resolve_model(model, compression=compression)
    if folder is None or config.compression is None:
        what = "no weights" if folder is None else "no format to compress it in"
        raise ValueError(
            f"compress: {what}, got model {str(model)!r} and compression {compression!r}. Give a "
            "folder with weights, and formats such as int8."
        )
    if Path(out).exists():
        raise ValueError(f"{out}: exists. Give a folder that is not there yet.")
    strategy = data_parallel(1)
    mesh = strategy.mesh.build(jax.devices()[:1])
    sharded = ShardedTransformer(config, strategy, Workload(1, 1))
    plain = ShardedTransformer(config.replace(compression=None), strategy, Workload(1, 1))
    on_progress(f"loading {folder}")
    dense = load_params(folder, plain, mesh)
    held = {path: x.get_value() for path, x in nnx.to_flat_state(dense)}
    on_progress(f"compressing {config.num_layers} layers: {', '.join(config.compression)}")
    packed = compress_on(dense, sharded, mesh)
    flat = {path: x.get_value() for path, x in nnx.to_flat_state(packed)}
    matrices = [
        _compared(path, where, held[path], flat) for path, where in packed_weights(config).items()
    ]
    rest = sum(x.nbytes for path, x in flat.items() if path[:-1] not in packed_weights(config))
    on_progress(f"writing {out}")
    save_compressed(out, sharded, packed, tokenizer_from=folder)
    return CompressedFolder(Path(out), config, tuple(matrices), rest)


def _compared(path: tuple, where: PackedWeight, dense: jax.Array, flat: dict) -> CompressedMatrix:
    arrays = {name: flat[(*path, name)] for name in where.names}

    def error(w, arrays):
        found = where.decompressed(arrays, "float32")
        wide = w.astype(jnp.float32)
        return jnp.linalg.norm(found - wide) / jnp.maximum(jnp.linalg.norm(wide), 1e-30)

    errors = jax.lax.map(lambda x: error(*x), (dense, arrays))
    stored = sum(x.nbytes for x in arrays.values())
    name = "/".join(path[1:])
    return CompressedMatrix(name, where.form.name, dense.nbytes, stored, float(errors.max()))
