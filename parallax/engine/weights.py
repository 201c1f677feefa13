"""Parameters and tokenizer of a folder: published weights, or a training run."""

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
from parallax.requests.naming import RUN_FILE, weights_of_run


def load_params(folder: Path, sharded: ShardedTransformer, mesh) -> nnx.State:
    """Parameters under a strategy: of *.safetensors, dense or compressed, or of a run's newest
    checkpoint. Where the model is to be compressed and the weights are not, they are, on the way.

    Raises:
      ValueError: none there, broken ones, or those of another model.

    Cost: compressing on the way holds the dense weights beside the compressed ones.
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
    """Parameters of a compressed model from the dense ones, both as the strategy lays them out.

    Cost: one scale an output channel needs the largest weight of all devices that share it.
    """
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharded.specs)
    compress = functools.partial(compress_params, config=sharded.config)
    return jax.jit(compress, out_shardings=shardings)(dense)


def find_tokenizer(config: ModelConfig, folder: Path | None) -> Tokenizer | None:
    """The folder's tokenizer, or that of the weights a run started from; without either, bytes for
    a model that has as many tokens, else None.

    Raises:
      ValueError: one that cannot be read.
    """
    if folder is not None and (folder / RUN_FILE).is_file():
        folder = weights_of_run(folder)
    if folder is not None:
        return huggingface.read_tokenizer(folder, config.vocab_size)
    return ByteTokenizer() if config.vocab_size == BYTE_VOCAB else None
