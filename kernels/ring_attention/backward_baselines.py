"""Baselines of the backward step: the kernel, XLA, and, with their forward, cuDNN and tokamax."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from parallax.kernels.errors import relative_error
from parallax.kernels.ring_attention.api import attention_step_backward
from parallax.kernels.ring_attention.backward_cases import Case, exact_rows, forward_sums, inputs
from parallax.kernels.ring_attention.baselines import peers, spread


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k, v, d_out, lse and delta."""
    arrays = inputs(case, seed)[:4]
    sums = jax.jit(lambda *x: forward_sums(*x, **case.options))(*arrays)
    return *arrays, *map(np.asarray, sums)


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function of `draw`'s arrays to (dq, dk, dv), or why it does not run."""

    def step(implementation: str) -> Callable:
        options = case.options | {"implementation": implementation}
        return functools.partial(attention_step_backward, **options)

    def whole(attend: Callable | str) -> Callable | str:
        if isinstance(attend, str):
            return attend
        return lambda q, k, v, d_out, lse, delta: jax.vjp(attend, q, k, v)[1](d_out)

    return {
        "mosaic": step("mosaic"),
        **{f"{name}, with its forward": whole(attend) for name, attend in peers(case).items()},
        "xla": step("xla"),
    }


def error(case: Case, out, *arrays) -> float:
    """Compute the largest relative error of evenly spread rows of dq, dk and dv against float64."""
    queries, keys = spread(case.q_length), spread(case.kv_length)
    expected = exact_rows(case, queries, keys, *arrays)
    return max(
        relative_error(np.asarray(mine)[:, at], right)
        for mine, at, right in zip(out, (queries, keys, keys), expected, strict=True)
    )
