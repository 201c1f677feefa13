"""The tokenizers: a folder's tokenizer.json, or bytes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from parallax.models.config import BYTE_VOCAB
from parallax.models.huggingface.fields import read_fields


class Tokenizer(Protocol):
    """The protocol of a tokenizer for generation and training."""

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with any prefix that the model expects."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Return the text of ids, without special ones."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """The tokenizer whose tokens are UTF-8 bytes, for models with 256 tokens."""

    stop_tokens: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, tokens: list[int]) -> str:
        return bytes(t for t in tokens if t < BYTE_VOCAB).decode("utf-8", errors="replace")


@dataclass(frozen=True, eq=False)
class _FileTokenizer:
    """The tokenizer of a tokenizer.json."""

    rust: Any
    stop_tokens: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        # A batch of one: `encode` would keep all of Python's threads waiting for a long text.
        return self.rust.encode_batch([text])[0].ids

    def decode(self, tokens: list[int]) -> str:
        return self.rust.decode(tokens)


def read_tokenizer(folder: str | Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a folder.

    Args:
      folder: a folder with tokenizer.json; without a tokenizer, a model of 256 tokens reads bytes.
      vocab_size: the number of tokens of the model.

    Raises:
      ValueError: no tokenizer, an unsupported or broken one, or one with more tokens than the
        model.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        others = [n for n in ("tokenizer.model", "vocab.json", "spiece.model")
                  if (folder / n).is_file()]  # fmt: skip
        if others:
            raise ValueError(
                f"{folder}: {others[0]} is a tokenizer of an unsupported kind. Save it as "
                "tokenizer.json (a fast tokenizer's save_pretrained does)."
            )
        if vocab_size == BYTE_VOCAB:
            return ByteTokenizer()
        raise ValueError(
            f"{folder}: no tokenizer.json, and the model's {vocab_size} tokens are not bytes. Add "
            "the model's tokenizer.json to it."
        )
    from tokenizers import Tokenizer as Rust

    try:
        rust = Rust.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path}: not a tokenizer: {error}.") from None
    if rust.get_vocab_size() > vocab_size:
        raise ValueError(
            f"{path}: {rust.get_vocab_size()} tokens, the model has {vocab_size}. Use the model's "
            "own tokenizer."
        )
    rust.no_truncation()  # a file may carry the settings of the run that saved it
    rust.no_padding()
    return _FileTokenizer(rust, _stop_tokens(folder, vocab_size))


def _stop_tokens(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Return eos_token_id of generation_config.json, or else of config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        end = read_fields(path, hint="").values.get("eos_token_id")
        ids = tuple(end) if isinstance(end, list) else () if end is None else (end,)
        if any(type(t) is not int or not 0 <= t < vocab_size for t in ids):
            raise ValueError(
                f"{path}: eos_token_id {end!r} is not in the vocabulary, 0 to {vocab_size - 1}."
            )
        if ids:
            return ids
    return ()
