"""The error that decides exactness."""

import numpy as np
import pytest

from parallax.lenses.verifying import relative_error, worst_error

ONE = np.ones(4)


def test_relative_l2():
    assert relative_error(ONE * 1.5, ONE) == pytest.approx(0.5)
    assert relative_error(ONE * 0, ONE * 0) == 0.0
    assert relative_error(ONE, ONE * 0) == float("inf")
    assert relative_error(ONE * np.nan, ONE) == float("inf")
    assert relative_error(ONE * np.inf, ONE) == float("inf")


def test_the_worst_parameter_counts():
    exact = {"a": ONE, "b": ONE * 1e-6}
    assert worst_error({"a": ONE, "b": ONE * 2e-6}, exact) == pytest.approx(1.0)
