"""The lines of HLO text without what surrounds it: fences, comments, indentation, line ends.

Every line keeps its number, so that errors name the line of the text as it was given.
"""

import re

from parallax.hlo.limits import MAX_LINE, MAX_TEXT
from parallax.hlo.shapes import HloError

_QUOTE_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|/\*.*?\*/|/\*.*|//.*')
_FENCE = ("```", "~~~")
# What else people pass, by how it begins, and what they want instead.
_OTHERS = (
    (("module", "func.func", "#loc"), "StableHLO (lowered.as_text())"),
    (("{ lambda", "{lambda"), "a jaxpr"),
    (("BufferAssignment", "001:", "{", "name:"), "another file of a dump"),
)


def module_lines(text: str) -> list[str]:
    """Return the lines of a module, stripped, from line 1 of the text; "" for all that is not HLO.

    Raises:
      HloError: the text is too long, does not hold a module, or holds two.
    """
    if len(text) > MAX_TEXT:
        raise HloError(f"text of {len(text)} characters: expected {MAX_TEXT} at most.")
    lines = text.replace("\r\n", "\n").removeprefix("\ufeff").split("\n")
    if len(longest := max(lines, key=len)) > MAX_LINE:
        raise HloError(
            f"line {lines.index(longest) + 1}: {len(longest)} characters, expected {MAX_LINE} at "
            "most."
        )
    lines = _unfenced(_without_comments(lines))
    heads = [n for n, line in enumerate(lines, 1) if line.startswith("HloModule ")]
    first = next((n for n, line in enumerate(lines, 1) if line), 1)
    if heads[:1] != [first]:
        got = lines[first - 1]
        raise HloError(
            f"line {first}: expected 'HloModule NAME, ...', got {got[:60]!r}.{_hint(got)}"
        )
    if len(heads) > 1:
        raise HloError(f"line {heads[1]}: a second HloModule. Give the text of one module.")
    return lines


def _hint(line: str) -> str:
    if not line:
        return " The text is empty."
    what = next((what for starts, what in _OTHERS if line.startswith(starts)), "")
    said = f" This is {what}." if what else ""
    return f"{said} Give compiled.as_text(), or XLA's *after_optimizations.txt."


def _without_comments(lines: list[str]) -> list[str]:
    """Strip the lines, without // and /* */ comments outside quotes."""
    kept, opened = [], 0
    for number, line in enumerate(lines, 1):
        if opened:
            _, closed, line = line.partition("*/")
            opened = 0 if closed else opened
        if not opened and ("//" in line or "/*" in line):
            parts, at = [], 0
            for match in _QUOTE_OR_COMMENT.finditer(line):
                if match[0][0] != '"':
                    parts.append(line[at : match.start()])
                    at = match.end()
                    unclosed = match[0].startswith("/*") and not match[0].endswith("*/", 2)
                    opened = number if unclosed else 0
            line = "".join([*parts, line[at:]])
        kept.append(line.strip() if line else "")
    if opened:
        raise HloError(f"line {opened}: a comment does not close: text is cut off.")
    return kept


def _unfenced(lines: list[str]) -> list[str]:
    """Blank the fences of Markdown and the words around them, where the module is in a fence."""
    head = next((n for n, line in enumerate(lines) if line.startswith("HloModule ")), 0)
    fences = [n for n, line in enumerate(lines) if line.startswith(_FENCE)]
    before = [n for n in fences if n < head]
    if not before:
        return lines
    end = next((n for n in fences if n > head), len(lines))
    return ["" if n <= before[-1] or n >= end else line for n, line in enumerate(lines)]
