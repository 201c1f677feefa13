"""Mosaic kernels in their interpreter: copies, barriers and wgmma emulated, races seen."""

import jax
import numpy as np
import pytest

from parallax.kernels.interpreting import interpreted
from parallax.kernels.operations import OPERATIONS

CASES = [(name, case) for name, op in OPERATIONS.items() for case in op.SMALL]
IDS = [f"{name}-{case.name}" for name, case in CASES]


@pytest.mark.parametrize(("name", "case"), CASES, ids=IDS)
def test_error_is_that_of_xla_or_less(name, case):
    """XLA rounds to the inputs' dtype before each product, as the kernels do."""
    operation = OPERATIONS[name]
    arrays = operation.inputs(case, 1)
    expected = operation.exact(case, *arrays)
    with interpreted():
        ours = jax.jit(operation.program(case, "mosaic"))(*arrays)
    theirs = jax.jit(operation.program(case, "xla"))(*arrays)
    for mine, other, right in zip(ours, theirs, expected, strict=True):
        assert mine.shape == other.shape == right.shape
        error, limit = relative(mine, right), relative(other, right)
        print(f"{case.name}: error {error:.3g}, XLA {limit:.3g}")
        assert error <= 1.2 * limit
        assert limit < 1e-2


def relative(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)
