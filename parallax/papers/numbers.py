"""The numbers that papers print, such as 12,800 and 1.20M and 16k."""

import re

_SUFFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6}
_NUMBER = re.compile(r"(?<![\w.])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")
_PRINTED = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?([kKM]?)")


def _parts(printed: str) -> tuple[float, int, float]:
    """Split a printed number into (number before the suffix, its decimals, the suffix's factor)."""
    match = _PRINTED.fullmatch(printed)
    if match is None:
        raise ValueError(f"printed number {printed!r}: expected digits such as 12,800 or 1.20M.")
    whole, fraction, suffix = match.groups(default="")
    number = float(whole.replace(",", "") + fraction)
    return number, max(0, len(fraction) - 1), _SUFFIXES[suffix]


def value_of(printed: str) -> float:
    """Return the value of a printed number: 1.20M is 1.2e6; ValueError if it is not a number."""
    number, decimals, scale = _parts(printed)
    return round(number * scale, decimals)


def last_digit_of(printed: str) -> float:
    """Return one unit of the last printed digit: 10,000 for 1.20M, 0.001 for 0.078."""
    _, decimals, scale = _parts(printed)
    return scale * 10.0**-decimals


def numbers_in(text: str) -> set[float]:
    """Find every number in a text; one followed by k, K or M counts with and without it."""
    numbers = set()
    for match in _NUMBER.finditer(text):
        numbers.add(value_of(match[0]))
        after = text[match.end() : match.end() + 2]
        if re.match(r"[kKM](?![\w])", after):
            numbers.add(value_of(match[0] + after[0]))
    return numbers
