"""What the tests of the cost model's laws share: sizes to draw, and how many examples."""

from hypothesis import settings
from hypothesis import strategies as st

NODE_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
SLACK = 1 + 1e-9  # sums in another order differ by less
few = settings(max_examples=300)


def upto(exponent):
    """Integers up to 2**exponent, small and large ones alike."""
    return st.floats(0, exponent).map(lambda x: int(2**x))
