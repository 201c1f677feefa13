"""The tokens of real text: the bytes of a UTF-8 file, by default Python's own sources."""

import os
from pathlib import Path

import numpy as np

DEFAULT_TEXT = "Python standard library sources"


def read_text(path: str | Path | None, needed: int) -> tuple[bytes, str]:
    """Read at least `needed` bytes of text, and return them with the name of their source.

    Args:
      path: a UTF-8 file, or None for the standard library's sources.
      needed: number of bytes; a shorter file is repeated.

    Raises:
      ValueError: the file is missing, unreadable, empty or not UTF-8.
    """
    if path is None:
        data = b""
        for source in sorted(Path(os.__file__).parent.glob("*.py")):
            data += source.read_bytes()
            if len(data) >= needed:
                break
        return data, DEFAULT_TEXT
    try:
        data = Path(path).read_bytes()
        data.decode("utf-8")
    except OSError as error:
        raise ValueError(f"--text={path}: {error.strerror}. Give a readable UTF-8 file.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--text={path}: not UTF-8 at byte {error.start}. Convert it.") from None
    if not data:
        raise ValueError(f"--text={path}: the file is empty. Give a UTF-8 file with text.")
    return data * -(-needed // len(data)), str(path)


def byte_tokens(text: bytes, batch: int, seq_len: int) -> np.ndarray:
    """Return the first bytes of a text as int32 tokens, [batch, seq_len]."""
    data = np.frombuffer(text[: batch * seq_len], np.uint8)
    return data.astype(np.int32).reshape(batch, seq_len)


def line_segments(tokens_BL: np.ndarray) -> np.ndarray:
    """Compute segment ids for packed sequences, [B, L] int32: two lines of text per document.

    The last tokens of every other sequence are padding (id 0).
    """
    lines = np.cumsum(tokens_BL == ord("\n"), axis=1)
    segments = 1 + lines // 2
    segments[::2, -max(1, tokens_BL.shape[1] // 10) :] = 0
    return segments.astype(np.int32)
