"""Real text that is available offline, split into a training and a held-out part."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parallax.engine.data import read_files
from parallax.models.config import BYTE_VOCAB

DEFAULT_NAME = "Python's language reference (pydoc_data.topics)"
_HELD_OUT = 0.1
_SPACE = ord(" ")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text's bytes as tokens, in two parts that share no paragraph.

    Attributes:
      name: description of the text.
      train, validation: 1-D int32.
      sha256: hash of both parts.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    sha256: str

    def windows(self, length: int, most: int | None = None) -> np.ndarray:
        """Return consecutive windows of the validation part, [n, length], without the remainder.

        Raises:
          ValueError: fewer than two windows.
        """
        count = len(self.validation) // length
        if count < 2:
            raise ValueError(
                f"data {self.name}: {len(self.validation)} held-out bytes are {count} windows of "
                f"{length}; an interval needs at least 2. Give more text."
            )
        return self.validation[: count * length].reshape(count, length)[:most]

    def batch(self, rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
        """Draw windows of the training part at random positions, [batch, length]."""
        starts = rng.integers(0, len(self.train) - length + 1, batch)
        return self.train[starts[:, None] + np.arange(length)]


@dataclass(frozen=True, eq=False)
class Cloze:
    """A task: which of four continuations is the text's own, [items, 4, L]; the first one is.

    The others come from elsewhere in the held-out text. All begin at the start of a word.
    """

    candidates: np.ndarray
    continuation: int

    @property
    def chance(self) -> float:
        """Share of right answers by guessing."""
        return 1 / self.candidates.shape[1]


def read_corpus(paths: Sequence[str | Path] | None) -> Corpus:
    """Read text, drop repeated paragraphs, and split it.

    Args:
      paths: files of text, or of byte tokens; the last tenth of each is held out. None is Python's
        own language reference, of which whole topics are held out.

    Raises:
      ValueError: files that cannot be read, or too little text.
    """
    if paths is None:
        from pydoc_data.topics import topics

        documents = _once(topics[name].encode() for name in sorted(topics))
        train, held_out = _by_document(documents)
        name = DEFAULT_NAME
    else:
        files = read_files(list(paths), BYTE_VOCAB)
        documents = _once(x.astype(np.uint8).tobytes() for x in files.arrays)
        cuts = [int(len(x) * (1 - _HELD_OUT)) for x in documents]
        train = b"\n\n".join(x[:cut] for x, cut in zip(documents, cuts, strict=True))
        held_out = b"\n\n".join(x[cut:] for x, cut in zip(documents, cuts, strict=True))
        name = ", ".join(Path(n).name for n in files.names)
    digest = hashlib.sha256(train + b"\0" + held_out).hexdigest()
    return Corpus(name, _tokens(train), _tokens(held_out), digest)


def cloze(corpus: Corpus, items: int, length: int, continuation: int, seed: int = 0) -> Cloze:
    """Make questions of one right and three wrong continuations from the held-out text.

    Args:
      items: number of questions.
      length: bytes of context and continuation together.
      continuation: bytes of the continuation.

    Raises:
      ValueError: too little held-out text.
    """
    text = corpus.validation
    context = length - continuation
    starts = 1 + np.flatnonzero((text[:-1] == _SPACE) & (text[1:] > _SPACE))
    starts = starts[(starts >= context) & (starts + continuation <= len(text))]
    if context < 1 or len(starts) < 4:
        raise ValueError(
            f"data {corpus.name}: {len(text)} held-out bytes give no questions of {length} bytes. "
            "Give more text."
        )
    rng = np.random.default_rng(seed)
    true = rng.choice(starts, items, replace=items > len(starts))
    out = np.empty((items, 4, length), np.int32)
    for row, start in zip(out, true, strict=True):
        own = text[start : start + continuation]
        others = [s for s in rng.permutation(starts)[:64]
                  if not np.array_equal(text[s : s + continuation], own)][:3]  # fmt: skip
        if len(others) < 3:
            raise ValueError(f"data {corpus.name}: the text repeats itself. Give another one.")
        row[:, :context] = text[start - context : start]
        for candidate, s in zip(row, (start, *others), strict=True):
            candidate[context:] = text[s : s + continuation]
    return Cloze(out, continuation)


def _once(documents: Iterable[bytes]) -> list[bytes]:
    """Drop repeated paragraphs from documents, so that nothing held out is trained on."""
    seen: set[bytes] = set()
    unique = []
    for document in documents:
        kept = []
        for paragraph in document.split(b"\n\n"):
            key = b" ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            unique.append(b"\n\n".join(kept))
    return unique


def _by_document(documents: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Hold out whole documents, in a fixed random order, until they are a tenth of the text."""
    room = _HELD_OUT * sum(map(len, documents))
    held_out: set[int] = set()
    for i in np.random.default_rng(0).permutation(len(documents)):
        if len(documents[i]) <= room:
            held_out.add(int(i))
            room -= len(documents[i])
    parts = (
        [x for i, x in enumerate(documents) if (i in held_out) == out] for out in (False, True)
    )
    train, validation = (b"\n\n".join(part) for part in parts)
    return train, validation


def _tokens(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).astype(np.int32)
