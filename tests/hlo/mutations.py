"""Damage to a text, one seeded piece at a time."""

import random
import re

_NUMBER = re.compile(r"\d+")
_NAME = re.compile(r"%[^\s,(){}]+")
_BRACKET = re.compile(r'[(){}\[\]"]')
_VALUE = re.compile(r"(?<==)(?:\{[^{}]*\}|\"[^\"]*\"|[^,{}\s]+)")
NUMBERS = ("0", "-1", "1", "2", "7", str(10**30), "1e9", "")


def _replaced(text: str, span: tuple[int, int], new: str) -> str:
    return text[: span[0]] + new + text[span[1] :]


def _one(pattern: re.Pattern, text: str, rng: random.Random) -> tuple[int, int]:
    return rng.choice([m.span() for m in pattern.finditer(text)])


def flipped(text: str, rng: random.Random) -> str:
    """One bit of one character."""
    at = rng.randrange(len(text))
    return _replaced(text, (at, at + 1), chr(ord(text[at]) ^ (1 << rng.randrange(8))))


def number(text: str, rng: random.Random) -> str:
    return _replaced(text, _one(_NUMBER, text, rng), rng.choice(NUMBERS))


def next_number(text: str, rng: random.Random) -> str:
    at = _one(_NUMBER, text, rng)
    return _replaced(text, at, str(int(text[slice(*at)]) + 1))


def name(text: str, rng: random.Random) -> str:
    other = text[slice(*_one(_NAME, text, rng))]
    return _replaced(text, _one(_NAME, text, rng), other)


def bracket(text: str, rng: random.Random) -> str:
    return _replaced(text, _one(_BRACKET, text, rng), "")


def value(text: str, rng: random.Random) -> str:
    return _replaced(text, _one(_VALUE, text, rng), "")


def _on_lines(change):
    def changed(text: str, rng: random.Random) -> str:
        lines = text.split("\n")
        change(lines, rng.randrange(len(lines)), rng)
        return "\n".join(lines)

    return changed


def _delete(lines, at, rng):
    del lines[at]


def _duplicate(lines, at, rng):
    lines.insert(rng.randrange(len(lines)), lines[at])


def _swap(lines, at, rng):
    other = rng.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]


def _cut(lines, at, rng):
    lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]


def _truncate(lines, at, rng):
    del lines[at:]


MUTATIONS = {
    "flipped": flipped, "number": number, "next number": next_number, "name": name,
    "bracket": bracket, "value": value, "line deleted": _on_lines(_delete),
    "line duplicated": _on_lines(_duplicate), "lines swapped": _on_lines(_swap),
    "line cut": _on_lines(_cut), "truncated": _on_lines(_truncate),
}  # fmt: skip
