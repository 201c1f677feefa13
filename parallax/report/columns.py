"""Tables of report.json: rows under columns that each have one unit and one tag."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from parallax.results.lens_results import Tag

type Json = dict[str, Any]
type Column = tuple[str, str | None, Tag | None, Callable[[Any], Any]]


def table(rows: Iterable[Any], columns: tuple[Column, ...]) -> Json:
    """Return rows under columns that each have one unit and one tag (null for words)."""
    return {
        "columns": [{"name": name, "unit": unit, "tag": tag} for name, unit, tag, _ in columns],
        "rows": [[_finite(read(row)) for _, _, _, read in columns] for row in rows],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
