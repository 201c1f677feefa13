"""What storing weights in fewer bits cost a trained model, as frozen values; written and read.

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
    """What was trained and measured on.

    Attributes:
      name, sha256: of the text.
      train_bytes, validation_bytes: of its two parts.
      windows, window_bytes: that perplexity is measured on.
    """

    name: str
    sha256: str
    train_bytes: int
    validation_bytes: int
    windows: int
    window_bytes: int


@dataclass(frozen=True)
class Score:
    """One way to store the model's matrices.

    Attributes:
      label: as the table has it.
      formats: of attention and MLP.
      tuned: trained a little more through the format before it was stored.
      layer_bytes: of one layer of this model.
      bits_per_byte, perplexity: of held-out text; perplexity is of a byte.
      increase: of perplexity over float16 with the same amount of training, per cent, paired.
      accuracy: of the task, share of right answers. accuracy_change: against float16, paired, in
        percentage points.
      next_byte: share of bytes that were the likeliest.
      agreement: share of positions where the likeliest byte is float16's.
      logits_error: relative L2 against float16's logits.
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
    """One seed of the race to a loss: held-out nats a byte after so many steps, and steps to the
    target; None where it was not reached."""

    seed: int
    steps: tuple[int, ...]
    dense_nats: tuple[float, ...]
    compressed_nats: tuple[float, ...]
    dense_steps: float | None
    compressed_steps: float | None


@dataclass(frozen=True)
class Race:
    """Steps to a loss, dense against trained compressed from the start.

    Attributes:
      formats: of the compressed runs.
      target_nats: held-out loss a byte, the lowest that every run reached.
      runs: a seed each.
      ratio: steps compressed over steps dense.
    """

    formats: tuple[str, str]
    target_nats: float
    runs: tuple[Run, ...]
    ratio: Figure


@dataclass(frozen=True)
class MatrixError:
    """Relative L2 error of one matrix's product.

    Attributes:
      weights: "trained", or "normal" ones at full size.
      layer: of the trained model; None for normal weights.
      matrix: its name, or its part.
      shape: of the weight.
      format: it is stored in.
      error: relative L2 of the output.
    """

    weights: str
    layer: int | None
    matrix: str
    shape: tuple[int, ...]
    format: str
    error: float


@dataclass(frozen=True)
class BlockError:
    """Relative L2 error of one trained block's output, residual stream included, with its matrices
    in formats and the dense block's input.

    Attributes:
      layer: its number.
      formats: of attention and MLP.
      error: relative L2 of the output.
    """

    layer: int
    formats: tuple[str, str]
    error: float


@dataclass(frozen=True)
class Sensitivity:
    """Perplexity's increase when one part of one layer is stored in a format, nothing else.

    Attributes:
      layer, part, format: which.
      n_bytes: that the part then takes.
      nats: more a byte of held-out text, with its interval.
    """

    layer: int
    part: str
    format: str
    n_bytes: int
    nats: Figure


@dataclass(frozen=True)
class MixFound:
    """The mildest mix under a budget.

    Attributes:
      what: it is a mix for.
      formats: of every layer, attention and MLP; one pair where layers are equal; () where nothing
        fits.
      budget_bytes: of one layer (the paper's) or of all layers (the trained model's).
      n_bytes: of weights that the mix takes, or the smallest possible where nothing fits.
      bits_a_weight: of n_bytes.
      predicted: sum of sensitivities, nats a byte; None where there are none.
      increase: of perplexity that the trained model has with these formats, per cent; None where
        nothing fits.
      note: in one line.
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
    """Everything `parallax compress_quality` measured.

    Attributes:
      date: UTC, ISO. command: that made it. versions: of what computed it. seconds: it took.
      model: fields of the ModelConfig.
      settings: steps and sizes.
      text: trained and measured on.
      chance: of the task, share of right answers by guessing. items: of the task.
      scores, race, errors, sensitivities, mixes: results.
      says: what they mean beside the paper's claims, a sentence each.
      blocks: errors of every block's output; () in records from before there were any.
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
        """As a file has it; numbers in full."""
        return json.dumps(FILE.encode(self), indent=1) + "\n"

    def score(self, label: str, tuned: bool = False) -> Score:
        """The row of a format. ValueError if there is none."""
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
    """Reads what `QualityRecord.to_json` wrote.

    Raises:
      ValueError: not there, not JSON, of another layout, a field that is missing, unknown or of
        another type, a number that is not finite, an interval that does not hold its value.
    """
    record = FILE.load(path)
    _check_intervals(record, f"quality record {path}")
    if not record.scores:
        raise ValueError(f"quality record {path}: no scores in it. {FILE.next_step}")
    return record


def _check_intervals(value: Any, where: str) -> None:
    """Raises ValueError for a figure that is outside of its own interval."""
    if isinstance(value, Figure):
        low, high = value.low, value.high
        slack = 1e-9 * (1 + abs(value.value))
        if (low is None) != (high is None) or (
            low is not None and high is not None and not low - slack <= value.value <= high + slack
        ):
            raise ValueError(f"{where}: {low} to {high} is no interval of {value.value}.")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _check_intervals(getattr(value, field.name), f"{where}: {field.name}")
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            _check_intervals(inner, f"{where}[{i}]")
