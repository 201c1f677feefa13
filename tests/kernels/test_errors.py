"""Errors of kernels' outputs: ordinary values, infinities, NaN."""

import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels.errors import largest_error, relative_error

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("out", "expected", "relative", "largest"),
    [
        ([3.0, 5.0], [3.0, 4.0], 0.2, 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0, 0),
        ([0.0, 1.0], [0.0, 0.0], INF, INF),
        ([-INF, 5.0], [-INF, 4.0], 0.25, 0.25),
        ([-INF], [-INF], 0, 0),
        ([-INF, 1.0], [2.0, 1.0], INF, INF),
        ([2.0, 1.0], [-INF, 1.0], INF, INF),
        ([INF, 1.0], [-INF, 1.0], INF, INF),
        ([NAN, 1.0], [1.0, 1.0], INF, INF),
        ([NAN, 1.0], [-INF, 1.0], INF, INF),
        ([NAN], [NAN], INF, INF),
        ([], [], 0, 0),
    ],
)
def test_errors(out, expected, relative, largest):
    assert relative_error(np.array(out), np.array(expected)) == relative
    assert largest_error(np.array(out), np.array(expected)) == largest


def test_outputs_of_any_dtype_and_shape():
    out = jnp.ones((2, 3), jnp.bfloat16)
    assert relative_error(out, np.ones((2, 3))) == 0
    with pytest.raises(ValueError, match="6 values, and 5 expected"):
        relative_error(out, np.ones(5))
