"""Tables of one layer per device: speed, energy, and three shares in three columns."""

from collections.abc import Sequence
from itertools import groupby

from parallax.papers.paper import Claim
from parallax.papers.results import ScaleRow
from parallax.report import words
from parallax.report.facts import Cell
from parallax.report.grid import DataTable, Heads
from parallax.report.placement_section import stored_in
from parallax.results.lens_results import Figure

_KERNEL = {"xla": "unpacked by XLA", "kernel": "kernel, assumed", "": ""}


def scale_grids(rows: Sequence[ScaleRow]) -> tuple[DataTable, ...]:
    """Return one table per phase, with a line for each row that does not fit as asked."""
    tables = []
    for phase, group in groupby(sorted(rows, key=lambda r: r.phase), key=lambda r: r.phase):
        mine = list(group)
        lines = [
            "L2: a device's weights over its L2 cache. HBM: bytes held per device over the "
            "usable ones. hit rate: weight reads that the L2 cache serves, by the cost model's "
            "rule. Claimed shares stand beside ours; the paper prints L2 and HBM in one column.",
            *_lowered(mine),
        ]
        title = f"One layer per device, {words.PHASES[phase]}"
        tables.append(DataTable(title, _HEADS, tuple(_row(r) for r in mine), tuple(lines)))
    return tuple(tables)


_HEADS: Heads = (
    ("layers", None), ("strategy", None), ("weights", None), ("batch", None),
    ("tokens/s", "modelled"), ("printed", "claimed"), ("J/token", "modelled"),
    ("tokens/J", "modelled"), ("printed", "claimed"), ("L2", "derived"), ("printed", "claimed"),
    ("HBM", "derived"), ("printed", "claimed"), ("hit rate", "modelled"), ("printed", "claimed"),
)  # fmt: skip


def _row(row: ScaleRow) -> tuple[Cell, ...]:
    speed = row.tokens_per_s
    stored = stored_in(row.formats) + (f" ({_KERNEL[row.unpacking]})" if row.unpacking else "")
    batch = f"{row.batch:,}" + ("" if row.batch == row.asked_batch else "*")
    return (
        Cell(f"{row.layers}"), Cell(row.strategy), Cell(stored), Cell(batch),
        Cell(words.in_tokens_per_s(speed.value).removesuffix(" tokens/s"))
        if speed else Cell("does not fit", "bad"),
        _claim(row.claims.get("TPS")), _digits(row.j_per_token), _digits(row.tokens_per_j),
        _claim(row.claims.get("energy efficiency")), _share(row.l2_use),
        _claim(row.claims.get("L2 use"), " %"), _share(row.hbm_use),
        _claim(row.claims.get("HBM use"), " %"), _share(row.hit_rate),
        _claim(row.claims.get("cache hit rate"), " %"),
    )  # fmt: skip


def _lowered(rows: Sequence[ScaleRow]) -> list[str]:
    return [f"* {row.layers} layers, {row.strategy}, {stored_in(row.formats)}: {row.why_not}"
            for row in rows if row.why_not]  # fmt: skip


def _claim(claim: Claim | None, unit: str = "") -> Cell:
    return Cell("-" if claim is None else claim.printed + unit)


def _digits(figure: Figure | None) -> Cell:
    return Cell("-" if figure is None else words.digits(figure.value))


def _share(figure: Figure | None) -> Cell:
    return Cell("-" if figure is None else words.percent(figure.value))
