"""A strict session on 16 virtual CPU devices, float64 available, warnings as errors."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
# Half the time to compile; what is compared is numbers.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=16"

import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time; compiling makes the first of them slow.
hypothesis.settings.register_profile("parallax", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("parallax")


@pytest.fixture(scope="session", autouse=True)
def sixteen_devices():
    """Fewer devices would make half of the tests pass for nothing."""
    assert jax.device_count() == 16


@pytest.fixture(scope="session")
def aot():
    """Skips where the CUDA compiler is not installed, and says so."""
    from parallax.lenses.environment import missing_compiler

    if reason := missing_compiler():
        pytest.skip(reason)
