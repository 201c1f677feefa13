"""Dumps on the command line: the text of a compiled module, and trip counts of its loops."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parallax.requests.option import option


def trips_option() -> Any:
    """Make the field for the trip counts of loops whose length depends on data."""
    words = "Trip counts of loops whose length depends on data: scope=count, separated by commas."
    return option((), words, "list")


def mesh_words() -> str:
    """Return the help of the mesh axes of a dump."""
    return "Mesh axes of its devices: axis=size,... Unset: those that the program names."


def read_dump(path: str) -> str:
    """Read the text of a compiled module.

    Raises:
      ValueError: the file cannot be read, or is not text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"{path}: {why}. Give the text of a compiled module.") from None


def parse_trips(pairs: Sequence[str]) -> dict[str, float]:
    """Parse trip counts, given as scope=count.

    Raises:
      ValueError: a pair of another form.
    """
    trips = {}
    for pair in pairs:
        scope, equals, count = pair.partition("=")
        try:
            trips[scope] = float(count)
        except ValueError:
            equals = ""
        if not (scope and equals):
            raise ValueError(f"--trips: expected scope=count, got {pair!r}.")
    return trips
