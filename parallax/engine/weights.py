"""Parameters and tokenizer of a folder: published weights, or a training run."""

from pathlib import Path

from flax import nnx

from parallax.engine.checkpoint import Checkpoints
from parallax.models import huggingface
from parallax.models.config import BYTE_VOCAB, ModelConfig
from parallax.models.huggingface import ByteTokenizer, Tokenizer
from parallax.naming import RUN_FILE, weights_of_run
from parallax.spmd import ShardedTransformer


def load_params(folder: Path, sharded: ShardedTransformer, mesh) -> nnx.State:
    """Parameters under a strategy: of *.safetensors, or of a run's newest checkpoint.

    Raises:
      ValueError: none there, broken ones, or those of another model.
    """
    if not (folder / RUN_FILE).is_file():
        return huggingface.load(folder, sharded, mesh)
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore_params(sharded, mesh)


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
