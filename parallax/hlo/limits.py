"""How large a text may be: far beyond any real program, and small enough that nothing hangs.

Text is not trusted: what is larger is refused with one HloError that names the limit.
"""

MAX_TEXT = 1 << 28  # characters
MAX_LINE = 1 << 22  # characters; a loop over 10,000 arrays has 1 << 19
MAX_DEVICES = 1 << 16
MAX_MESH_AXES = 20
MAX_RANK = 64
MAX_NESTED_TUPLES = 64
# XLA keeps sizes in 64 bits with a sign, and so trip counts.
MAX_ELEMENTS = (1 << 62) - 1
MAX_TRIPS = (1 << 63) - 1
MAX_DIGITS = 19
# Of computations that call each other. Programs of many layers are loops, or long, not deep.
MAX_DEPTH = 64
# Instructions met on a walk from the entry that enters every call, each time.
MAX_STEPS = 4_000_000
# Of all collectives in flight, the kernels and calls that run meanwhile.
MAX_BETWEEN = 1_000_000
# What a config in JSON that is not what it should be makes Python raise.
UNREADABLE = (
    KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


def short(text: str, size: int = 80) -> str:
    """Text for an error message: quoted, and cut where it is long."""
    return repr(text) if len(text) <= size else f"{text[:size]!r}..."
