"""The measured quality cost of compressed weights, as frozen values that are written and read.

Figures are tagged `measured`, with 95 % intervals, except where a byte count is `derived`.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallax.codec import FileFormat, later
from parallax.results.lens_results import Figure

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Text:
    """The text used for training and measurement.

    Attributes:
      name, sha256: name and hash of the text.
      train_bytes, validation_bytes: bytes of its two parts.
      windows, window_bytes: number and size of the windows for perplexity.
    """

    name: str
    sha256: str
    train_bytes: int
    validation_bytes: int
    windows: int
    window_bytes: int


@dataclass(frozen=True)
class Score:
    """The scores of one way to store the model's matrices.

    Attributes:
      label: label of the table's row.
      formats: formats of attention and MLP.
      tuned: whether the model was trained some more through the format before it was stored.
      layer_bytes: bytes of one layer of this model.
      bits_per_byte, perplexity: of held-out text; perplexity is per byte.
      increase: increase of perplexity over float16 with equal training, per cent, paired.
      accuracy: share of the task's right answers. accuracy_change: against float16, paired, in
        percentage points.
      next_byte: share of bytes that the model found likeliest.
      agreement: share of positions whose likeliest byte is the same as float16's.
      logits_error: relative L2 error against float16's logits.
    """

    label: str
    formats: tuple[str, str]
    tuned: bool
    layer_bytes: Figure
    bits_per_byte: Figure
    perplexity: Figure
    increase: Figure
    accuracy: Figure
    accuracy_change: Figure
    next_byte: Figure
    agreement: Figure
    logits_error: Figure


@dataclass(frozen=True)
class Run:
    """One seed of the race to a loss.

    It has held-out nats per byte after numbers of steps, and the steps to the target (None where it
    was not reached).
    """

    seed: int
    steps: tuple[int, ...]
    dense_nats: tuple[float, ...]
    compressed_nats: tuple[float, ...]
    dense_steps: float | None
    compressed_steps: float | None


@dataclass(frozen=True)
class Race:
    """The steps to a loss of dense training against training compressed from the start.

    Attributes:
      formats: formats of the compressed runs.
      target_nats: held-out loss per byte, the lowest that every run reached.
      runs: one per seed.
      ratio: compressed steps over dense steps.
    """

    formats: tuple[str, str]
    target_nats: float
    runs: tuple[Run, ...]
    ratio: Figure


@dataclass(frozen=True)
class MatrixError:
    """The relative L2 error of one matrix's product.

    Attributes:
      weights: "trained" weights, or "normal" ones at full size.
      layer: layer of the trained model; None for normal weights.
      matrix: name of the matrix, or its part.
      shape: shape of the weight.
      format: storage format.
      error: relative L2 error of the output.
    """

    weights: str
    layer: int | None
    matrix: str
    shape: tuple[int, ...]
    format: str
    error: float


@dataclass(frozen=True)
class BlockError:
    """The relative L2 error of one trained block's output, including the residual stream.

    The block's matrices are stored in formats, and its input is that of the dense model.

    Attributes:
      layer: number of the layer.
      formats: formats of attention and MLP.
      error: relative L2 error of the output.
    """

    layer: int
    formats: tuple[str, str]
    error: float


@dataclass(frozen=True)
class Sensitivity:
    """The increase of loss when only one part of one layer is stored in a format.

    Attributes:
      layer, part, format: the part and its format.
      n_bytes: bytes of the part in this format.
      nats: increase per byte of held-out text, with its interval.
    """

    layer: int
    part: str
    format: str
    n_bytes: int
    nats: Figure


@dataclass(frozen=True)
class MixFound:
    """The mixed-precision assignment with the least loss under a budget.

    Attributes:
      what: description of the model or layer.
      formats: per layer, formats of attention and MLP; one pair if layers are equal; () if nothing
        fits.
      budget_bytes: budget of one layer (the paper's) or of all layers (the trained model's).
      n_bytes: bytes of the weights, or the least possible if nothing fits.
      bits_a_weight: bits per weight that n_bytes amounts to.
      predicted: sum of sensitivities, nats per byte; None if nothing fits.
      increase: increase of the trained model's perplexity with these formats, per cent; None if
        nothing fits.
      note: one line.
    """

    what: str
    formats: tuple[tuple[str, str], ...]
    budget_bytes: int
    n_bytes: int
    bits_a_weight: float
    predicted: float | None
    increase: Figure | None
    note: str


@dataclass(frozen=True)
class QualityRecord:
    """Everything that one run of `parallax compress_quality` measured.

    Attributes:
      date: UTC, ISO. command: command line. versions: of packages. seconds: duration.
      model: fields of the ModelConfig.
      settings: steps and sizes.
      text: text used for training and measurement.
      chance: share of the task's right answers by guessing. items: number of its questions.
      scores, race, errors, sensitivities, mixes: results.
      says: sentences on what they mean for the paper's claims.
      blocks: errors of every block's output; () in older records, which have none.
    """

    date: str
    command: str
    versions: dict[str, str]
    seconds: float
    model: dict[str, Any]
    settings: dict[str, float]
    text: Text
    chance: float
    items: int
    scores: tuple[Score, ...]
    race: Race | None
    errors: tuple[MatrixError, ...]
    sensitivities: tuple[Sensitivity, ...]
    mixes: tuple[MixFound, ...]
    says: tuple[str, ...]
    blocks: tuple[BlockError, ...] = later((), omit=True)

    def to_json(self) -> str:
        """Return the record as the text of its file, with numbers in full precision."""
        return json.dumps(FILE.encode(self), indent=1) + "\n"

    def score(self, label: str, tuned: bool = False) -> Score:
        """Return the row of a format; raise ValueError if there is none."""
        for score in self.scores:
            if (score.label, score.tuned) == (label, tuned):
                return score
        known = ", ".join(dict.fromkeys(s.label for s in self.scores))
        raise ValueError(f"quality record: no row {label!r} (tuned={tuned}). There are: {known}.")


FILE = FileFormat(
    QualityRecord, "quality record", "schema_version", SCHEMA_VERSION,
    "Make it again with parallax compress_quality.",
)  # fmt: skip


def load_record(path: str | Path) -> QualityRecord:
    """Read a record that `QualityRecord.to_json` wrote.

    Raises:
      ValueError: a missing file, no JSON, another layout, a field that is missing, unknown or of
        another type, a number that is not finite, an interval that does not contain its value.
    """
    record = FILE.load(path)
    _check_intervals(record, f"quality record {path}")
    if not record.scores:
        raise ValueError(f"quality record {path}: no scores in it. {FILE.next_step}")
    return record


def _check_intervals(value: Any, context: str) -> None:
    """Raise ValueError for a figure that is outside of its own interval."""
    if isinstance(value, Figure):
        low, high = value.low, value.high
        slack = 1e-9 * (1 + abs(value.value))
        if (low is None) != (high is None) or (
            low is not None and high is not None and not low - slack <= value.value <= high + slack
        ):
            raise ValueError(f"{context}: {low} to {high} is no interval of {value.value}.")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _check_intervals(getattr(value, field.name), f"{context}: {field.name}")
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            _check_intervals(inner, f"{context}[{i}]")
