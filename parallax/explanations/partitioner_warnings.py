"""The warnings of XLA's partitioner, as values."""

import re
from collections.abc import Iterator

from parallax.explanations.compiled import Program
from parallax.explanations.source_lines import SourceLine, users_line

_WARNING = re.compile(
    r"Involuntary full rematerialization.*? from sharding (?P<before>\{.*?\}) "
    r"to (?P<after>\{.*?\}) efficiently for HLO operation %(?P<name>\S+) = (?P<shape>\S+).*?"
    r"metadata=(?P<metadata>\{[^}]*\})"
)
_DIMS = re.compile(r"\], \[(\{.*\})\]\}$")
Split = tuple[tuple[str, ...], ...]


def warned_splits(program: Program) -> Iterator[tuple[Split, Split, SourceLine | None]]:
    """Yield the splits before and after of each full rematerialization, and the line it warns of.

    A split is the mesh axes of each dim.
    """
    for text in dict.fromkeys(program.warnings):
        match = _WARNING.search(text)
        if match is None:
            continue
        before, after = _split(match["before"]), _split(match["after"])
        if before is not None and after is not None:
            line = users_line(program.module.sources.frames_of(match["metadata"]))
            yield before, after, line


def _split(text: str) -> Split | None:
    match = _DIMS.search(text)
    if match is None:
        return None
    dims = re.findall(r"\{([^{}]*)\}", match[1])
    return tuple(tuple(re.findall(r"'([^']+)'", dim)) for dim in dims)
