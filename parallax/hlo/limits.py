"""The limits of HLO text: far beyond any real program, and small enough that nothing hangs.

Text is not trusted: anything larger is refused with one HloError that names the limit.
"""

MAX_TEXT = 1 << 28  # characters
MAX_LINE = 1 << 22  # characters; a loop over 10,000 arrays has 1 << 19
MAX_DEVICES = 1 << 16
MAX_MESH_AXES = 20
MAX_RANK = 64
MAX_NESTED_TUPLES = 64
# XLA keeps sizes and trip counts in signed 64-bit integers.
MAX_ELEMENTS = (1 << 62) - 1
MAX_TRIPS = (1 << 63) - 1
MAX_DIGITS = 19
# Depth of calls. Programs of many layers are loops, or long, but not deep.
MAX_DEPTH = 64
# Instructions met on a walk from the entry that enters every call each time.
MAX_STEPS = 4_000_000
# Kernels and calls between starts and dones, summed over all collectives.
MAX_BETWEEN = 1_000_000
# The errors that reading a malformed JSON config raises.
UNREADABLE = (
    KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


def short(text: str, size: int = 80) -> str:
    """Quote a text for an error message, and truncate it if it is long."""
    return repr(text) if len(text) <= size else f"{text[:size]!r}..."
