"""The Mosaic kernels on a real GPU, in a process that may see it: pytest -m gpu."""

import os
from pathlib import Path

import pytest

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
    "XLA_FLAGS": "",
}  # fmt: skip
# Against float64 in NumPy: larger ones would take minutes there.
LARGEST_FLOPS = 2e11


def errors_on_gpu(name, seed, *, on_progress):
    """(case, ours, XLA's) of each output, against float64; results land in memory full of NaN."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from parallax.kernels.operations import OPERATIONS

    assert jax.devices()[0].platform == "gpu"
    operation = OPERATIONS[name]

    def errors(case, implementation, arrays, expected):
        poison = [jnp.full(x.shape, jnp.nan, jnp.float32) for x in expected for _ in range(8)]
        jax.block_until_ready(poison)
        del poison
        out = jax.jit(operation.program(case, implementation))(*arrays)
        return [
            float(np.linalg.norm(np.asarray(x, np.float64) - right) / np.linalg.norm(right))
            for x, right in zip(out, expected, strict=True)
        ]

    found = []
    for case in (*operation.SMALL, *operation.SHIPPED):
        if case.flops > LARGEST_FLOPS:
            continue
        arrays = operation.inputs(case, seed)
        expected = operation.exact(case, *arrays)
        ours, theirs = (errors(case, x, arrays, expected) for x in ("mosaic", "xla"))
        on_progress(f"{case.name}: ours {ours}, XLA {theirs}")
        found.append((case.name, ours, theirs))
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_error_on_the_gpu_is_that_of_xla_or_less(name):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    found = run_in_child(errors_on_gpu, name, seed, environment=GPU_ENVIRONMENT, on_progress=print)
    assert found
    for case, ours, theirs in found:
        for mine, other in zip(ours, theirs, strict=True):
            assert mine <= 1.2 * other, f"{case}: {mine} against XLA's {other}, seed {seed}"
