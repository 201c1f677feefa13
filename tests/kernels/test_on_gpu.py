"""The Mosaic kernels on a real GPU, in a process that may see it: pytest -m gpu."""

import os
from pathlib import Path

import pytest

from parallax.kernels.errors import BOUNDS, REFERENCE_FLAGS
from parallax.kernels.operations import OPERATIONS
from parallax.lenses.child import run_in_child

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not Path("/proc/driver/nvidia/version").exists(), reason="no NVIDIA GPU on this machine"
    ),
]
# What the session of virtual CPU devices set is undone.
GPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cuda", "JAX_ENABLE_X64": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "XLA_FLAGS": REFERENCE_FLAGS,
}  # fmt: skip
# Against float64 in NumPy: larger ones would take minutes there.
LARGEST_FLOPS = 2e11


def verdicts_on_gpu(name, seed, *, on_progress):
    """(case, verdict) of each case against float64 in NumPy; prints XLA's errors beside it."""
    import jax

    from parallax.kernels.operations import OPERATIONS
    from parallax.studies.kernels.checking import check, compile_case

    assert jax.devices()[0].platform == "gpu"
    operation = OPERATIONS[name]
    found = []
    for case in (*operation.SMALL, *operation.SHIPPED):
        if case.flops > LARGEST_FLOPS:
            continue
        arrays = operation.inputs(case, seed)
        expected = operation.exact(case, *arrays)
        ours, theirs = (
            check(compile_case(operation, case, name, arrays), case.dtype, arrays, expected)
            for name in ("mosaic", "xla")
        )
        on_progress(f"{case.name}: {ours}, XLA's errors {theirs.errors}")
        found.append((case, ours))
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_kernels_are_right_on_the_gpu(name):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    found = run_in_child(
        verdicts_on_gpu, name, seed, environment=GPU_ENVIRONMENT, on_progress=print
    )
    assert found
    for case, verdict in found:
        assert verdict.is_right, f"{case.name}: {verdict}, at most {BOUNDS[case.dtype]}, {seed=}"
