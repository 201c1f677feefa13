"""Tables of a quality record, on a terminal and as one page."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from parallax.report.facts import Cell
from parallax.report.grid import DataTable, grid_html, grid_table
from parallax.report.templates import render_page
from parallax.results.lens_results import Tag
from parallax.studies.quality.results import QualityRecord, Race
from parallax.studies.quality.sentences import interval, percent, points, share

TITLE = "What storing weights in fewer bits costs"
_CLAIMS = "Beside the paper's claims"


_WORDS = ("attention, MLP", "seed", "matrix", "part", "for", "block")
_DERIVED = ("KB a layer", "budget", "bytes", "bits a weight", "predicted")


def record_table(record: QualityRecord) -> RenderableType:
    """Render the whole record as one rich renderable."""
    parts: list[RenderableType] = [Text(TITLE, style="bold"), Text(described(record), style="dim")]
    for grid in tables(record):
        parts += [Text(), grid_table(grid)]
    parts += [Text(f"\n{_CLAIMS}", style="bold"), *(Text(f"- {line}") for line in record.says)]
    return Group(*parts)


def record_page(record: QualityRecord) -> str:
    """Render the record as one self-contained HTML document."""
    return render_page(
        "quality.html.j2", Path(__file__).parent,
        title=TITLE, answer=next(iter(record.says), ""), described=described(record),
        claims=_CLAIMS, says=record.says,
        tables=[grid_html(grid) for grid in tables(record)],
        made=f"{record.command}, {record.date}, {record.seconds:.0f} s, "
        + ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    )  # fmt: skip


def described(record: QualityRecord) -> str:
    """Describe in two sentences what was trained and measured, and on what text."""
    text = record.text
    return (
        f"{record.model['num_layers']} layers, {record.model['d_model']} wide, trained for "
        f"{record.settings['steps']:.0f} steps on {text.train_bytes} bytes of {text.name}; "
        f"measured on {text.windows} held-out windows of {text.window_bytes} bytes and "
        f"{record.items} questions of four answers (chance {100 * record.chance:.0f} %). "
        "Brackets are 95 % intervals, of differences paired with float16 of equal training."
    )


def tables(record: QualityRecord) -> tuple[DataTable, ...]:
    """Return all tables that have a row, in order."""
    return tuple(grid for grid in _tables(record) if grid.rows)


def _tables(record: QualityRecord) -> Iterator[DataTable]:
    yield _scores(record)
    if record.race is not None:
        yield _race(record.race)
    yield _errors(record)
    yield _blocks(record)
    yield _sensitivities(record)
    yield _mixes(record)


def _scores(record: QualityRecord) -> DataTable:
    rows = tuple(
        (
            _pair(score.formats) + (" tuned" if score.tuned else ""),
            f"{score.layer_bytes.value / 1e3:.0f}", interval(score.bits_per_byte, 3),
            percent(score.increase), f"{100 * score.accuracy.value:.1f} %",
            points(score.accuracy_change), f"{100 * score.agreement.value:.2f} %",
            f"{score.logits_error.value:.1e}",
        )
        for score in record.scores
    )  # fmt: skip
    heads = ("attention, MLP", "KB a layer", "bits a byte", "perplexity more", "task right",
             "task change", "next byte as float16", "logits off")  # fmt: skip
    first = record.scores[0]
    note = (
        f"the task: {first.label} is right at {share(first.accuracy)}, guessing at "
        f"{100 * record.chance:.0f} %; with {record.items} questions it does not see small changes"
    )
    return _grid("Formats", heads, rows, note)


def _race(race: Race) -> DataTable:
    def said(steps: float | None) -> str:
        return "not reached" if steps is None else f"{steps:.0f}"

    rows = ((str(r.seed), said(r.dense_steps), said(r.compressed_steps)) for r in race.runs)
    return _grid(
        f"Steps to {race.target_nats:.3f} nats a held-out byte",
        ("seed", "dense", f"trained as {_pair(race.formats)}"), tuple(rows),
        f"ratio {interval(race.ratio, 2)} ({race.ratio.note})",
    )  # fmt: skip


def _errors(record: QualityRecord) -> DataTable:
    formats = tuple(dict.fromkeys(e.format for e in record.errors))
    errors: dict[str, dict[str, float]] = {}
    for e in record.errors:
        name = f"{e.weights} {e.matrix}" if e.layer is None else f"layer {e.layer} {e.matrix}"
        errors.setdefault(f"{name} {list(e.shape)}", {})[e.format] = e.error
    rows = (
        (name, *(f"{of[f]:.1e}" if f in of else "" for f in formats)) for name, of in errors.items()
    )
    title = "Relative L2 error of a matrix's product"
    return _grid(title, ("matrix", *formats), tuple(rows))


def _blocks(record: QualityRecord) -> DataTable:
    pairs = tuple(dict.fromkeys(b.formats for b in record.blocks))
    layers = tuple(dict.fromkeys(b.layer for b in record.blocks))
    errors = {(b.layer, b.formats): f"{b.error:.1e}" for b in record.blocks}
    rows = ((f"layer {n}", *(errors.get((n, pair), "") for pair in pairs)) for n in layers)
    return _grid(
        "Relative L2 error of a block's output, given the dense block's input",
        ("block", *map(_pair, pairs)), tuple(rows), "the residual stream is part of the output",
    )  # fmt: skip


def _sensitivities(record: QualityRecord) -> DataTable:
    formats = tuple(dict.fromkeys(s.format for s in record.sensitivities))
    cells: dict[str, list[str]] = {}
    for s in record.sensitivities:
        cells.setdefault(f"layer {s.layer} {s.part}", []).append(f"{s.nats.value:+.4f}")
    title = "One part of one layer in a format: held-out nats a byte more"
    return _grid(title, ("part", *formats), tuple((k, *v) for k, v in cells.items()))


def _mixes(record: QualityRecord) -> DataTable:
    rows = tuple(
        (
            mix.what, "; ".join(map(_pair, mix.formats)) or mix.note,
            f"{mix.budget_bytes / 1e6:.3f} MB", f"{mix.n_bytes / 1e6:.3f} MB",
            f"{mix.bits_a_weight:.2f}",
            "" if mix.predicted is None else f"{100 * math.expm1(mix.predicted):+.1f} %",
            "" if mix.increase is None else percent(mix.increase),
        )
        for mix in record.mixes
    )  # fmt: skip
    return _grid(
        "The mildest mix under a budget; perplexity is the small model's",
        ("for", "attention, MLP", "budget", "bytes", "bits a weight", "predicted",
         "perplexity more"),
        rows, "predicted: sensitivities added up; measured: all of them together",
    )  # fmt: skip


def _pair(formats: tuple[str, str]) -> str:
    return formats[0] if formats[0] == formats[1] else ", ".join(formats)


def _grid(
    title: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], note: str = ""
) -> DataTable:
    def tag(head: str) -> Tag | None:
        return None if head in _WORDS else "derived" if head in _DERIVED else "measured"

    return DataTable(
        title,
        tuple((head, tag(head)) for head in heads),
        tuple(tuple(Cell(text) for text in row) for row in rows),
        (note,) if note else (),
    )
