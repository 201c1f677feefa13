"""Mosaic kernels in their interpreter: copies, barriers and wgmma emulated, races seen."""

import jax
import pytest

from parallax.kernels.errors import relative_error
from parallax.kernels.interpreting import interpreted
from parallax.kernels.operations import OPERATIONS


def marks(number):
    """An eighth of them always: dtypes, head_dims and masks take turns."""
    return [] if number % 8 == 0 else [pytest.mark.exhaustive]


CASES = [
    pytest.param(name, case, id=f"{name}-{case.name}", marks=marks(number))
    for name, operation in OPERATIONS.items()
    for number, case in enumerate(operation.SMALL)
]
OF_FLOAT32 = 1e-6


@pytest.mark.parametrize(("name", "case"), CASES)
def test_error_is_that_of_xla_or_less(name, case):
    """XLA rounds to the inputs' dtype before each product, as the kernels do.

    Maxima and sums are not rounded: there the kernels' units of log2 may cost a few float32 digits.
    """
    operation = OPERATIONS[name]
    arrays = operation.inputs(case, 1)
    expected = operation.exact(case, *arrays)
    with interpreted():
        ours = jax.jit(operation.program(case, "mosaic"))(*arrays)
    theirs = jax.jit(operation.program(case, "xla"))(*arrays)
    for mine, other, right in zip(ours, theirs, expected, strict=True):
        assert mine.shape == other.shape == right.shape
        error, limit = relative_error(mine, right), relative_error(other, right)
        print(f"{case.name}: error {error:.3g}, XLA {limit:.3g}")
        assert error <= max(1.2 * limit, OF_FLOAT32)
        assert limit < 1e-2
