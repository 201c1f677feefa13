"""Train a small model, store it in every format, and measure the cost in one record."""

import dataclasses
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from parallax.engine.optimizer import Adamw
from parallax.models.config import ModelConfig
from parallax.papers import PAPERS
from parallax.placement import layer_footprints
from parallax.results.lens_results import Figure
from parallax.studies.quality.corpus import Cloze, cloze, read_corpus
from parallax.studies.quality.fitting import Bench, Looked
from parallax.studies.quality.intervals import exp_interval, mean_interval, ratio_interval
from parallax.studies.quality.layer_errors import block_errors, normal_errors, trained_errors
from parallax.studies.quality.mixes import (
    LISTED,
    STRONGER,
    full_size_mix,
    sensitivities,
    trained_mix,
)
from parallax.studies.quality.results import (
    MixFound,
    QualityRecord,
    Race,
    Run,
    Score,
    Sensitivity,
    Text,
)
from parallax.studies.quality.sentences import sentences
from parallax.studies.quality.storing import compressed, rounding

PAPERS_FORMATS = ("int8", "int8+2:4")
# Rows of the table: (attention, MLP). The first one is the baseline of all others.
ROWS: dict[str, tuple[str, str]] = {
    "float16": ("float16", "float16"),
    "int8": ("int8", "int8"),
    "w8a8": ("w8a8", "w8a8"),
    "int4": ("int4", "int4"),
    "2:4": ("float16+2:4", "float16+2:4"),
    "paper's": PAPERS_FORMATS,
    "int8+2:4": ("int8+2:4", "int8+2:4"),
    "int4+2:4": ("int4+2:4", "int4+2:4"),
}
# The paper's head_dim, so that exactly the formats of a 4096-wide layer can be stored.
MODEL = ModelConfig(
    "compress_quality", num_layers=2, d_model=128, num_heads=2, num_kv_heads=2, head_dim=128,
    d_ff=512, vocab_size=256, mlp="gated", dtype="float32",
)  # fmt: skip
_ERROR_FORMATS = ("int8", "w8a8", "int4", "float16+2:4", "int8+2:4", "int4+2:4")
_FULL_SIZE_FORMATS = ("int8", "w8a8", "int4")
_FULL_SIZE = PAPERS["compressed_layerwise"].config
_CONTINUATION = 16  # bytes, in the task
_ERROR_WINDOWS = 8
Line = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """The sizes of a measurement.

    Attributes:
      steps: training steps of the model.
      tune_steps: further steps through each format; 0 omits those rows.
      race_steps, race_seeds: steps and seeds of dense against compressed training; 0 omits it.
      batch, seq_len: sizes of a training step; held-out windows have seq_len bytes.
      windows: most windows of held-out text. items: questions of the task.
      learning_rate: AdamW's, warmed up over a twentieth of the steps, cosine decay to a tenth.
      budget_share: share of the layers' float16 bytes, for the mixed-precision assignment.
      full_size: whether to measure errors on the paper's full-size shapes too.
      seed: seed of everything random.
    """

    steps: int = 1500
    tune_steps: int = 80
    race_steps: int = 300
    race_seeds: int = 3
    batch: int = 8
    seq_len: int = 128
    windows: int = 256
    items: int = 200
    learning_rate: float = 3e-3
    budget_share: float = 0.12
    full_size: bool = True
    seed: int = 0

    def __post_init__(self):
        least = {"tune_steps": 0, "race_steps": 0, "race_seeds": 0, "seed": 0}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < least.get(field.name, 1):
                raise ValueError(
                    f"{field.name} must be at least {least.get(field.name, 1)}, got {value}."
                )
        if self.seq_len <= _CONTINUATION:
            raise ValueError(
                f"seq_len must be above {_CONTINUATION}, the bytes of a continuation; got "
                f"{self.seq_len}."
            )
        if not 0 < self.budget_share <= 1:
            raise ValueError(
                f"budget_share must be above 0 and at most 1, got {self.budget_share}."
            )

    def optimizer(self, steps: int, share: float = 1.0) -> Adamw:
        """Return AdamW for a number of steps, at a share of the learning rate."""
        return Adamw(share * self.learning_rate, warmup_steps=max(1, steps // 20))


def measure(
    data: list[str] | None = None, settings: Settings | None = None, *,
    config: ModelConfig = MODEL, command: str = "", on_progress: Line = lambda line: None,
) -> QualityRecord:  # fmt: skip
    """Measure everything that `parallax compress_quality` shows.

    Args:
      data: files of text; None is Python's language reference.
      settings: sizes.
      config: the model: float32, 256 tokens, no experts, sizes that all formats divide.
      command: the command line, for the record.
      on_progress: called with a line whenever something starts.

    Raises:
      ValueError: files that cannot be read, too little text, sizes that do not fit.
    """
    start = time.perf_counter()
    settings = settings or Settings()
    corpus = read_corpus(data)
    windows = corpus.windows(settings.seq_len, settings.windows)
    task = cloze(corpus, settings.items, settings.seq_len, _CONTINUATION)
    bench = Bench(config, corpus, settings.batch, settings.seq_len)
    on_progress(f"training on {corpus.name}: {len(corpus.train)} bytes, {settings.steps} steps")
    every = max(1, settings.steps // 10)

    def said(done: int, loss: Any) -> None:
        if done % every == 0:
            on_progress(f"step {done}/{settings.steps}: {float(loss):.3f} nats per byte")

    params, _ = bench.fit(
        bench.init(settings.seed), settings.steps, settings.optimizer(settings.steps),
        seed=settings.seed, on_step=said,
    )  # fmt: skip
    scorer = _Scorer(bench, windows, task)
    scores = [*scorer.rows(params, tuned=False, on_progress=on_progress)]
    baseline = scorer.baseline.nats  # float16, not tuned
    errors = trained_errors(config, params, windows[:_ERROR_WINDOWS], _ERROR_FORMATS)
    on_progress("errors of every block's output")
    blocks = block_errors(config, params, windows[:_ERROR_WINDOWS], ROWS.values())
    sensitivity, mixes = _mixes(bench, params, windows, baseline, settings, on_progress)
    if settings.full_size:
        on_progress("errors at full size: normal weights")
        errors += normal_errors(_FULL_SIZE, _FULL_SIZE_FORMATS)
    if settings.tune_steps:
        scores += _tuned(bench, params, scorer, settings, on_progress)
    race = None
    if settings.race_steps and settings.race_seeds:
        race = run_race(bench, windows, settings, on_progress)
    return QualityRecord(
        datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        command, _versions(), round(time.perf_counter() - start, 1), config.to_dict(),
        {k: float(v) for k, v in dataclasses.asdict(settings).items()},
        Text(corpus.name, corpus.sha256, len(corpus.train), len(corpus.validation), len(windows),
             settings.seq_len),
        task.chance, settings.items, tuple(scores), race, errors, sensitivity, mixes,
        sentences(scores, race, errors), blocks,
    )  # fmt: skip


class _Scorer:
    """Scores rows of the table; the first of each kind is the baseline of the others."""

    def __init__(self, bench: Bench, windows: np.ndarray, task: Cloze):
        self.bench, self.windows, self.task = bench, windows, task
        self.baseline: Looked = None  # pyright: ignore[reportAttributeAccessIssue]
        self._right = np.zeros(0)

    def rows(self, params: nnx.State, *, tuned: bool, on_progress: Line) -> Iterator[Score]:
        """Score every format of the same parameters."""
        for label in ROWS:
            on_progress(f"measuring {label}{', tuned' if tuned else ''}")
            yield self.score(label, params, tuned)

    def score(self, label: str, params: nnx.State, tuned: bool) -> Score:
        """Score one row; `float16` becomes the baseline of what follows."""
        formats, layers = ROWS[label], self.bench.config.num_layers
        stored, config = compressed(params, self.bench.config, formats)
        looked = self.bench.look(stored, self.windows, config)
        right = self.bench.answer(stored, self.task, config)
        if label == next(iter(ROWS)):
            self.baseline, self._right = looked, right
        base = self.baseline
        half = self.bench.config.replace(dtype="float16")
        n_bytes = layer_footprints(half, [formats] * layers)[0].weights
        off = np.linalg.norm(looked.logits - base.logits) / np.linalg.norm(base.logits)
        return Score(
            label, formats, tuned, Figure(n_bytes, "B", "derived"),
            mean_interval(looked.nats, "bits/byte", 1 / np.log(2)),
            exp_interval(looked.nats, "1"),
            exp_interval(looked.nats - base.nats, "%", growth=True),
            mean_interval(right, "1"),
            mean_interval(right - self._right, "percentage points", 100),
            mean_interval(looked.next_byte, "1"),
            mean_interval((looked.best == base.best).mean(1), "1"),
            Figure(float(off), "1", "measured"),
        )  # fmt: skip


def _tuned(
    bench: Bench, params: nnx.State, scorer: _Scorer, settings: Settings, on_progress: Line
) -> Iterator[Score]:
    """Score rows after some more steps through each format; float16 gets the same number."""
    steps = settings.tune_steps
    known: dict[Any, nnx.State] = {}
    for label, formats in ROWS.items():
        # Formats that train alike are trained once: int8 with and without rounded activations.
        alike = rounding(formats), tuple("+" in name for name in formats)
        if alike not in known:
            on_progress(f"tuning {label}: {steps} steps")
            known[alike], _ = bench.fit(
                params, steps, settings.optimizer(steps, 0.3), formats=formats,
                seed=settings.seed + 1,
            )  # fmt: skip
        on_progress(f"measuring {label}, tuned")
        yield scorer.score(label, known[alike], tuned=True)


def run_race(
    bench: Bench, windows: np.ndarray, settings: Settings, on_progress: Line = lambda line: None
) -> Race:
    """Train dense against compressed from the start: same weights and batches, per seed.

    The target is the lowest held-out loss that every run reached.
    """
    every = -(-settings.race_steps // 20)
    some = windows[:: max(1, len(windows) // 64)]
    curves = []
    for seed in range(settings.race_seeds):
        for formats in (None, PAPERS_FORMATS):
            on_progress(f"race, seed {seed}: {'dense' if formats is None else 'compressed'}")
            _, curve = bench.fit(
                bench.init(seed + 1), settings.race_steps, settings.optimizer(settings.race_steps),
                formats=formats, seed=seed + 1, look_every=every, windows=some,
            )  # fmt: skip
            curves.append(curve)
    target = max(min(curve.nats) for curve in curves)
    runs = tuple(
        Run(seed, dense.steps, dense.nats, packed.nats, dense.steps_to(target),
            packed.steps_to(target))
        for seed, (dense, packed) in enumerate(zip(curves[::2], curves[1::2], strict=True))
    )  # fmt: skip
    ratios = [r.compressed_steps / r.dense_steps for r in runs
              if r.compressed_steps and r.dense_steps]  # fmt: skip
    return Race(PAPERS_FORMATS, target, runs, ratio_interval(np.asarray(ratios)))


def _mixes(
    bench: Bench, params: nnx.State, windows: np.ndarray, baseline: np.ndarray, settings: Settings,
    on_progress: Line,
) -> tuple[tuple[Sensitivity, ...], tuple[MixFound, ...]]:  # fmt: skip
    on_progress("sensitivity of every layer's parts to every format")
    measured = tuple(sensitivities(bench, params, windows, baseline, (*LISTED, *STRONGER)))
    on_progress("mixed-precision assignments under budgets")
    inputs = bench, params, windows, baseline, measured
    paper = "a layer of compressed_layerwise"
    return measured, (
        trained_mix(*inputs, settings.budget_share),
        full_size_mix(*inputs, _FULL_SIZE, 144_100_000, LISTED, f"{paper} in 144.1 MB"),
        full_size_mix(*inputs, _FULL_SIZE, 49_500_000, LISTED, f"{paper} in 49.5 MB"),
        full_size_mix(*inputs, _FULL_SIZE, 49_500_000, (*LISTED, *STRONGER),
                      f"{paper} in 49.5 MB, stronger formats allowed"),
    )  # fmt: skip


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "qwix")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }
