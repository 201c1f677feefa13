"""optax counts steps in integers and mixes them with floats: not in a strict session."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield
