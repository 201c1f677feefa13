"""Baselines of the backward step: the kernel, XLA, and, with their forward, cuDNN and tokamax."""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import jax
import numpy as np

from parallax.kernels.errors import relative_error
from parallax.kernels.ring_attention.api import attention_step_backward
from parallax.kernels.ring_attention.backward_cases import (
    Case,
    exact_rows,
    forward_sums,
    inputs,
    options,
)

# Queries, and keys, checked against float64; all of a long case would take minutes on a CPU.
_CHECKED_ROWS = 64


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k, v, d_out, lse and delta."""
    arrays = inputs(case, seed)[:4]
    sums = jax.jit(lambda *x: forward_sums(*x, **options(case)))(*arrays)
    return *arrays, *map(np.asarray, sums)


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function of `draw`'s arrays to (dq, dk, dv), or why it does not run."""
    mask = options(case)

    def step(implementation: str) -> Callable:
        return functools.partial(attention_step_backward, implementation=implementation, **mask)

    def whole(attend: Callable) -> Callable:
        return lambda q, k, v, d_out, lse, delta: jax.vjp(attend, q, k, v)[1](d_out)

    tokamax = "not installed"
    if importlib.util.find_spec("tokamax") is not None:
        theirs = importlib.import_module("tokamax").dot_product_attention
        tokamax = whole(lambda q, k, v: theirs(q, k, v, **mask))
    return {
        "mosaic": step("mosaic"),
        "cudnn, with its forward": whole(
            lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **mask)
        ),
        "tokamax, with its forward": tokamax,
        "xla": step("xla"),
    }


def error(case: Case, out, *arrays) -> float:
    """Compute the largest relative error of evenly spread rows of dq, dk and dv against float64."""
    queries, keys = map(_spread, (case.step.q_length, case.step.kv_length))
    expected = exact_rows(case, queries, keys, *arrays)
    rows = queries, keys, keys
    return max(
        relative_error(np.asarray(mine)[:, at], right)
        for mine, at, right in zip(out, rows, expected, strict=True)
    )


def _spread(length: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, _CHECKED_ROWS).astype(int))
