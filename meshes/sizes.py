"""Sizes of memory as people write them."""

import re

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(|k|M|G|Ki|Mi|Gi)B?")


def parse_bytes(text: str, name: str = "budget", expected: str = "bytes") -> int:
    """Parse bytes such as `50MB` or `49.5Mi`. ValueError for any other text, or zero bytes."""
    match = _BYTES.fullmatch(text)
    if match is None:
        raise ValueError(f"{name} {text!r}: expected {expected} such as 50MB or 48Mi.")
    size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise ValueError(f"{name} {text!r}: nothing fits in zero bytes. Give at least one byte.")
    return size
