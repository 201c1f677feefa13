"""The Mosaic kernel on a real GPU, in a process that may see it: pytest -m gpu."""

import os
from pathlib import Path

import pytest

from parallax.kernels.ring_attention.cases import SHIPPED, SMALL
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
CASES = (*SMALL, *(case for case in SHIPPED if case.q_length < 1000))


def errors_on_gpu(cases, seed, *, on_progress):
    """(ours, XLA's) for each case, against float64; results land in memory full of NaN."""
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from parallax.kernels.ring_attention import attention_step, empty_carry, finish
    from parallax.kernels.ring_attention.cases import exact, inputs

    assert jax.devices()[0].platform == "gpu"

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(case, implementation, q, k, v, k_earlier, v_earlier, limit):
        scale = case.head_dim**-0.5
        carry = attention_step(
            q, k_earlier, v_earlier, empty_carry(q), is_causal=False, scale=scale,
            implementation="xla",
        )  # fmt: skip
        carry = attention_step(
            q, k, v, carry, is_causal=case.is_causal, scale=scale, kv_length=limit,
            implementation=implementation,
        )  # fmt: skip
        return finish(carry, jnp.float32)[0]

    found = []
    for case in cases:
        arrays = inputs(case, seed)
        expected = exact(case, *arrays)
        limit = None if case.limit is None else jnp.int32(case.limit)
        errors = []
        for implementation in ("mosaic", "xla"):
            poison = [jnp.full(expected.shape, jnp.nan, jnp.float32) for _ in range(8)]
            jax.block_until_ready(poison)
            del poison
            out = run(case, implementation, *map(jnp.asarray, arrays), limit)
            out = np.asarray(out, np.float64)
            errors.append(float(np.linalg.norm(out - expected) / np.linalg.norm(expected)))
        on_progress(f"{case.name}: ours {errors[0]:.3g}, XLA {errors[1]:.3g}")
        found.append(tuple(errors))
    return found


def test_error_on_the_gpu_is_that_of_xla_or_less():
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    found = run_in_child(errors_on_gpu, CASES, seed, environment=GPU_ENVIRONMENT, on_progress=print)
    for case, (ours, theirs) in zip(CASES, found, strict=True):
        assert ours <= 1.2 * theirs, f"{case.name}: {ours} against XLA's {theirs}, seed {seed}"
