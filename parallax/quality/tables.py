"""A quality record on a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table, box
from rich.text import Text

from parallax.quality.saying import interval, percent, points
from parallax.quality_results import MixFound, QualityRecord


def record_table(record: QualityRecord) -> RenderableType:
    """The whole record as one rich renderable."""
    return Group(*_parts(record))


def _parts(record: QualityRecord) -> Iterator[RenderableType]:
    text = record.text
    yield Text("What storing weights in fewer bits costs", style="bold")
    yield Text(
        f"{record.model['num_layers']} layers, {record.model['d_model']} wide, trained for "
        f"{record.settings['steps']:.0f} steps on {text.train_bytes} bytes of {text.name}; "
        f"measured on {text.windows} held-out windows of {text.window_bytes} bytes and "
        f"{record.items} questions of four answers (chance {100 * record.chance:.0f} %). "
        "Brackets are 95 % intervals, of differences paired with float16.",
        style="dim",
    )
    yield _scores(record)
    if record.race is not None:
        yield _race(record)
    yield _errors(record)
    yield _sensitivities(record)
    yield _mixes(record.mixes)
    yield Text("Beside the paper's claims (measured)", style="bold")
    for line in record.says:
        yield Text(f"- {line}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _scores(record: QualityRecord) -> RenderableType:
    table = _table(
        "Formats (measured; bytes derived)", "attention, MLP", "KB a layer", "bits a byte",
        "perplexity more", "task right", "task change", "next byte as float16", "logits off",
    )  # fmt: skip
    for score in record.scores:
        same = len(set(score.formats)) == 1
        name = score.formats[0] if same else ", ".join(score.formats)
        table.add_row(
            name + (" tuned" if score.tuned else ""), f"{score.layer_bytes.value / 1e3:.0f}",
            interval(score.bits_per_byte, 3), percent(score.increase),
            f"{100 * score.accuracy.value:.1f} %", points(score.accuracy_change),
            f"{100 * score.agreement.value:.2f} %", f"{score.logits_error.value:.1e}",
        )  # fmt: skip
    return table


def _race(record: QualityRecord) -> RenderableType:
    race = record.race
    assert race is not None
    table = _table(
        f"Steps to {race.target_nats:.3f} nats a held-out byte (measured)", "seed", "dense",
        f"trained as {', '.join(race.formats)}",
    )  # fmt: skip
    for run in race.runs:
        found = ("not reached" if x is None else f"{x:.0f}"
                 for x in (run.dense_steps, run.compressed_steps))  # fmt: skip
        table.add_row(str(run.seed), *found)
    return Group(table, Text(f"  ratio {interval(race.ratio, 2)} ({race.ratio.note})"))


def _errors(record: QualityRecord) -> RenderableType:
    formats = tuple(dict.fromkeys(e.format for e in record.errors))
    table = _table("Relative L2 error of a matrix's product (measured)", "matrix", *formats)
    rows = dict.fromkeys((e.weights, e.layer, e.matrix, e.shape) for e in record.errors)
    found = {((e.weights, e.layer, e.matrix, e.shape), e.format): e.error for e in record.errors}
    for row in rows:
        weights, layer, matrix, shape = row
        where = f"layer {layer} {matrix}" if layer is not None else f"{weights} {matrix}"
        cells = (f"{found[row, f]:.1e}" if (row, f) in found else "" for f in formats)
        table.add_row(f"{where} {list(shape)}", *cells)
    return table


def _sensitivities(record: QualityRecord) -> RenderableType:
    formats = tuple(dict.fromkeys(s.format for s in record.sensitivities))
    table = _table(
        "One part of one layer in a format: held-out nats a byte more (measured)", "part", *formats
    )
    for layer, part in dict.fromkeys((s.layer, s.part) for s in record.sensitivities):
        row = [s for s in record.sensitivities if (s.layer, s.part) == (layer, part)]
        table.add_row(f"layer {layer} {part}", *(f"{s.nats.value:+.4f}" for s in row))
    return table


def _mixes(mixes: tuple[MixFound, ...]) -> RenderableType:
    table = _table(
        "The mildest mix under a budget (bytes derived, perplexity measured here)", "for",
        "attention, MLP", "budget", "bytes", "bits a weight", "perplexity more",
    )  # fmt: skip
    for mix in mixes:
        named = "\n".join(", ".join(pair) for pair in mix.formats) or mix.note
        table.add_row(
            mix.what, named, f"{mix.budget_bytes / 1e6:.3f} MB", f"{mix.n_bytes / 1e6:.3f} MB",
            f"{mix.bits_a_weight:.2f}", "" if mix.increase is None else percent(mix.increase),
        )  # fmt: skip
    table.columns[1].overflow = "fold"
    return table
