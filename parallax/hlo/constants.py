"""The constants of a compiled program: arrays that every device holds beside its arguments."""

import re

from parallax.hlo.shapes import parse_shape

# Scalars are part of the instructions that use them; only arrays take memory of their own.
_ARRAY = re.compile(r" = ([a-z][a-z0-9]*\[[0-9][0-9,]*\])\S* constant\(")


def constant_bytes(text: str) -> int:
    """Count the bytes of the constant arrays in a module's text; compilers' totals leave them out.

    They are what a function closes over as numpy arrays, and are whole on every device.
    """
    return sum(parse_shape(match[1]).n_bytes for match in _ARRAY.finditer(text))
