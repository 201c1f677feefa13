"""Baselines of a packed product: the kernel, XLA unpacking first, and XLA with a dense weight."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.errors import relative_error
from parallax.kernels.packed_matmul import cases
from parallax.kernels.packed_matmul.cases import Case, program


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw the inputs of all baselines, as `cases.inputs` does, then the dense weight [K, O]."""
    arrays = cases.inputs(case, seed)
    rows = np.broadcast_to(np.eye(case.inputs), (*case.lead, case.inputs, case.inputs))
    (weight,) = cases.exact(case, rows, *arrays[1:])
    return *arrays, weight.astype(case.dtype)


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function of `draw`'s arrays to [T, O], or why it does not run."""

    def call(implementation: str) -> Callable:
        run = program(case, implementation)
        return lambda *arrays: run(*arrays[:-1])[0]

    def dense(x, *arrays) -> jax.Array:
        sums = jnp.int32 if case.dtype == "int8" else jnp.float32
        return jnp.einsum("...tk,...ko->...to", x, arrays[-1], preferred_element_type=sums)

    return {"mosaic": call("mosaic"), "xla": call("xla"), "dense": dense}


def error(case: Case, out, x, *arrays) -> float:
    """Compute the relative error of the output against float64 NumPy."""
    (expected,) = cases.exact(case, np.asarray(x), *map(np.asarray, arrays[:-1]))
    return relative_error(out, expected)
