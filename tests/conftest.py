"""A strict session on 16 virtual CPU devices, float64 available, warnings as errors."""

import gc
import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
# Half the time to compile; what is compared is numbers.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=16"
# What one worker or child process has compiled no other compiles again, in this session or, in a
# folder that is already named, in later ones: programs are kept by what they were compiled from.
PROGRAMS = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    PROGRAMS = tempfile.TemporaryDirectory(prefix="parallax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import hypothesis
import jax
import pytest

gc.set_threshold(100_000)  # tracing makes many objects that stay
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time; compiling makes the first of them slow.
hypothesis.settings.register_profile("parallax", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("parallax")


def pytest_configure(config):
    if PROGRAMS is not None:
        config.add_cleanup(PROGRAMS.cleanup)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    """What `pytest` leaves out is slow too; files with slow tests start first, to end together."""
    for item in items:
        if item.get_closest_marker("full") or item.get_closest_marker("exhaustive"):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
