"""Conversion of a study of regimes to and from plain data: seconds per map and strategy."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from parallax.codec import check_version, decode, encode
from parallax.studies.regimes.places import NAMES, PIPELINES, Grid, Place

RECORD_VERSION = 1
_OF_MAP = ("cluster", "phase", "attention", "stored", "unpacking", "depth")
_DIGITS = 5
_SAID = "regimes record", "Run parallax regimes again."


def to_record(grid: Grid, places: Iterable[Place]) -> dict[str, Any]:
    """Convert to JSON data. Places are in the order of `study`: by map, then width, then batch."""
    maps = []
    for names, group in groupby(places, key=lambda p: tuple(getattr(p, n) for n in _OF_MAP)):
        of_map = list(group)
        maps.append({
            **dict(zip(_OF_MAP, names, strict=True)),
            "seconds": {n: [_rounded(p.seconds.get(n)) for p in of_map] for n in NAMES},
            "steady_s": {n: [_rounded(p.steady_s.get(n)) for p in of_map] for n in PIPELINES},
            "hit_rate": [_rounded(p.hit_rate) for p in of_map],
            "why_not": {n: {str(i): p.why_not[n] for i, p in enumerate(of_map) if n in p.why_not}
                        for n in NAMES},
        })  # fmt: skip
    return {"record_version": RECORD_VERSION, "tag": "modelled", "unit": "s",
            "grid": encode(grid), "maps": maps}  # fmt: skip


def from_record(data: Mapping[str, Any]) -> tuple[Grid, tuple[Place, ...]]:
    """Read back the result of `to_record`; seconds are rounded to five digits.

    Raises:
      ValueError: data of another shape.
    """
    try:
        check_version(data, "record_version", RECORD_VERSION, *_SAID)
        grid = decode(Grid, data["grid"], *_SAID)
        return grid, tuple(p for m in data["maps"] for p in _places(grid, m))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"regimes record: expected grid and maps as this version writes them ({error!r}). "
            "Run parallax regimes again."
        ) from None


def _places(grid: Grid, data: Mapping[str, Any]) -> Iterable[Place]:
    size = len(grid.widths) * len(grid.batches)
    lists = (*data["seconds"].values(), *data["steady_s"].values(), data["hit_rate"])
    if {len(values) for values in lists} != {size}:
        raise ValueError(f"regimes record: a map has {size} places. Run parallax regimes again.")
    for i in range(size):
        row, column = divmod(i, len(grid.batches))
        yield Place(
            **{n: data[n] for n in _OF_MAP},
            batch=grid.batches[column], width=grid.widths[row],
            seconds={n: s[i] for n, s in data["seconds"].items() if s[i] is not None},
            steady_s={n: s[i] for n, s in data["steady_s"].items() if s[i] is not None},
            hit_rate=data["hit_rate"][i],
            why_not={n: w[str(i)] for n, w in data["why_not"].items() if str(i) in w},
        )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
