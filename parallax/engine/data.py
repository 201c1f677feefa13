"""Batches of tokens from files, in the same order for any number of processes, resumable.

`grain` shuffles and iterates; a batch is B windows of L tokens of the concatenated files. Every
process draws the same numbers of windows and reads those that its own devices need.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from parallax.distributed.processes import process_count, process_index
from parallax.models.huggingface import ByteTokenizer, Tokenizer


@dataclass(frozen=True, eq=False)
class TokenFiles:
    """The tokens of some files, concatenated.

    Attributes:
      arrays: one per file, 1-D integers; those of .bin and .npy files are memory-mapped.
      names: the names of the files.
    """

    arrays: tuple[np.ndarray, ...]
    names: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return sum(len(x) for x in self.arrays)

    def window(self, start: int, length: int) -> np.ndarray:
        """Return [length] int32 from token `start` on, across the ends of files."""
        out = np.empty(length, np.int32)
        done, first = 0, 0
        for x in self.arrays:
            a = start + done - first
            if 0 <= a < len(x) and done < length:
                piece = x[a : a + length - done]
                out[done : done + len(piece)] = piece
                done += len(piece)
            first += len(x)
        return out


def read_files(
    paths: Sequence[str | Path], vocab_size: int, tokenizer: Tokenizer | None = None
) -> TokenFiles:
    """Open files of tokens or text.

    Args:
      paths: .npy (1-D integers) and .bin (raw little-endian uint16) hold tokens; any other file is
        UTF-8 text, tokenized whole.
      vocab_size: the model's vocabulary size; tokens must be below it. Each process checks an
        equal share of the tokens of a file.
      tokenizer: the tokenizer of text files; None takes bytes as tokens.

    Raises:
      ValueError: there is no file, a file is missing, empty, or neither tokens nor UTF-8, or a
        token is outside of the vocabulary.
    """
    if not paths:
        raise ValueError("no data. Give files with --data=FILE,FILE.")
    arrays = []
    for path in map(Path, paths):
        try:
            x = _read(path, tokenizer or ByteTokenizer())
        except OSError as error:
            raise ValueError(f"data {path}: {error.strerror}. Give a readable file.") from None
        if not len(x):
            raise ValueError(f"data {path}: no tokens in it. Give a file with some.")
        low, high = _range_of_share(x)
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"data {path}: token {high if high >= vocab_size else low} is outside of the "
                f"vocabulary, 0 to {vocab_size - 1}. Tokenize it for this model."
            )
        arrays.append(x)
    return TokenFiles(tuple(arrays), tuple(map(str, paths)))


def _range_of_share(x: np.ndarray) -> tuple[int, int]:
    """Return the smallest and the largest token of this process's share of a file."""
    count, k = process_count(), process_index()
    share = x[len(x) * k // count : len(x) * (k + 1) // count]
    return (int(share.min()), int(share.max())) if len(share) else (0, 0)


def _read(path: Path, tokenizer: Tokenizer) -> np.ndarray:
    if path.suffix == ".npy":
        try:
            x = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"data {path}: not a .npy file: {error}.") from None
        if x.ndim != 1 or x.dtype.kind not in "iu":
            raise ValueError(
                f"data {path}: expected a row of integers, got {x.dtype} {list(x.shape)}."
            )
        return x
    if path.suffix == ".bin":
        if path.stat().st_size % 2:
            raise ValueError(f"data {path}: an odd number of bytes cannot be a row of uint16.")
        return np.memmap(path, "<u2", mode="r") if path.stat().st_size else np.empty(0, np.uint16)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data {path}: not UTF-8 at byte {error.start}. Convert it.") from None
    if isinstance(tokenizer, ByteTokenizer):
        return np.frombuffer(text.encode("utf-8"), np.uint8)
    return np.asarray(tokenizer.encode(text), np.int32)


# This is more than any run needs; grain cannot count the batches of an endless repetition.
_PASSES = 1 << 20


class Batches:
    """An iterator over the batches of one run, sharded on its devices.

    Args:
      files: the tokens.
      batch: windows per batch, over all processes.
      seq_len: tokens per window.
      seed: seed of the order, which differs in every pass over the data.
      sharding: the sharding of a batch [B, L].

    Raises:
      ValueError: there are fewer windows than a batch needs.

    Attributes:
      windows: the number of windows in the data.
      rows: the rows of a batch that this process's devices need, in order; only their windows are
        read here.
    """

    def __init__(
        self, files: TokenFiles, batch: int, seq_len: int, seed: int, sharding: NamedSharding
    ):
        import grain

        windows = files.tokens // seq_len
        if windows < batch:
            raise ValueError(
                f"data: {files.tokens} tokens are {windows} windows of {seq_len}, fewer than a "
                f"batch of {batch}. Give more data, or lower --batch or --seq_len."
            )
        self.windows, self.sharding, self._shape = windows, sharding, (batch, seq_len)
        self.rows = _local_rows(sharding, self._shape)

        def read(numbers: np.ndarray) -> np.ndarray:
            """Return [rows, L] int32 of a batch's window numbers [B]."""
            return np.stack([files.window(int(i) * seq_len, seq_len) for i in numbers[self.rows]])

        source = grain.MapDataset.range(windows).seed(seed).shuffle().repeat(_PASSES)
        # A position counts batches, so that it is the same on every process.
        self._iterator: Any = iter(source.batch(batch).map(read).to_iter_dataset())

    def __iter__(self) -> Iterator[jax.Array]:
        return self

    def __next__(self) -> jax.Array:
        tokens = next(self._iterator)

        def piece(at: tuple[slice, ...] | None) -> np.ndarray:
            assert at is not None
            rows = range(*at[0].indices(self._shape[0]))
            first = int(np.searchsorted(self.rows, rows.start))
            return tokens[first : first + len(rows), at[1]]

        # Each process contributes its devices' rows of the same batch.
        return jax.make_array_from_callback(self._shape, self.sharding, piece)

    @property
    def position(self) -> dict[str, Any]:
        """Return the position that `seek` takes, as JSON; the same on every process."""
        return self._iterator.get_state()

    def seek(self, position: dict[str, Any]) -> None:
        """Move to the position of another iterator over the same files, batch and seed."""
        self._iterator.set_state(dict(position))


def _local_rows(sharding: NamedSharding, shape: tuple[int, int]) -> np.ndarray:
    """Return the rows of an array [B, L] that are on this process's devices, in order."""
    rows: set[int] = set()
    for index in sharding.addressable_devices_indices_map(shape).values():
        assert index is not None
        rows.update(range(*index[0].indices(shape[0])))
    return np.array(sorted(rows))
