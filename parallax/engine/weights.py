"""Loading of parameters and tokenizer from published weights or a training run."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import NamedSharding

from parallax.engine.checkpoint import Checkpoints
from parallax.models import huggingface
from parallax.models.compressed_files import load_compressed
from parallax.models.compressed_folder import FILE as COMPRESSED_FILE
from parallax.models.compressing import compress_params
from parallax.models.config import BYTE_VOCAB, ModelConfig
from parallax.models.huggingface import ByteTokenizer, Tokenizer
from parallax.programs.sharded_model import ShardedTransformer
from parallax.requests.naming import RUN_FILE, weights_folder


def load_params(folder: Path, sharded: ShardedTransformer, mesh) -> nnx.State:
    """Load parameters under a strategy from *.safetensors or from a run's newest checkpoint.

    Dense weights of a model with compressed matrices are compressed while they are loaded.

    Raises:
      ValueError: the weights are missing, broken, or those of another model.

    Cost: compressing while loading holds the dense weights beside the compressed ones.
    """
    if (folder / COMPRESSED_FILE).is_file():
        return load_compressed(folder, sharded, mesh)
    config = sharded.config
    if config.compression is not None:
        dense = replace(sharded, config=config.replace(compression=None))
        return compress_on(load_params(folder, dense, mesh), sharded, mesh)
    if not (folder / RUN_FILE).is_file():
        return huggingface.load(folder, sharded, mesh)
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore_params(sharded, mesh)


def compress_on(dense: nnx.State, sharded: ShardedTransformer, mesh) -> nnx.State:
    """Compress dense parameters on their devices; both are laid out as the strategy says.

    Cost: an output channel's scale needs the maximum over all devices that share the channel.
    """
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharded.specs)
    compress = functools.partial(compress_params, config=sharded.config)
    return jax.jit(compress, out_shardings=shardings)(dense)


def find_tokenizer(config: ModelConfig, folder: Path | None) -> Tokenizer | None:
    """Return the tokenizer of a folder, or of the weights that its runs started from.

    Without either it is the byte tokenizer for a model with as many tokens, else None.

    Raises:
      ValueError: the tokenizer cannot be read.
    """
    if folder is not None:
        folder = weights_folder(folder)
    if folder is not None:
        return huggingface.read_tokenizer(folder, config.vocab_size)
    return ByteTokenizer() if config.vocab_size == BYTE_VOCAB else None
