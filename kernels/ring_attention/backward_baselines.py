"""Baselines of the backward step: the kernel, XLA, and, with their forward, cuDNN and tokamax."""

import importlib
import importlib.util
from collections.abc import Callable

import jax
import numpy as np

from parallax.kernels.ring_attention.api import attention_step_backward
from parallax.kernels.ring_attention.backward_cases import Case, forward_sums, inputs

# Queries, and keys, checked against float64; all of a long case would take minutes on a CPU.
_CHECKED_ROWS = 64


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k, v, d_out, lse and delta."""
    arrays = inputs(case, seed)[:4]
    sums = jax.jit(lambda *x: forward_sums(*x, **_options(case)))(*arrays)
    return *arrays, *map(np.asarray, sums)


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function of `draw`'s arrays to (dq, dk, dv), or why it does not run."""
    options = _options(case)

    def step(implementation: str) -> Callable:
        return lambda *arrays: attention_step_backward(
            *arrays, implementation=implementation, **options
        )

    def whole(attend: Callable) -> Callable:
        return lambda q, k, v, d_out, lse, delta: jax.vjp(attend, q, k, v)[1](d_out)

    tokamax = "not installed"
    if importlib.util.find_spec("tokamax") is not None:
        theirs = importlib.import_module("tokamax").dot_product_attention
        tokamax = whole(lambda q, k, v: theirs(q, k, v, **options))
    return {
        "mosaic": step("mosaic"),
        "cudnn, with its forward": whole(
            lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **options)
        ),
        "tokamax, with its forward": tokamax,
        "xla": step("xla"),
    }


def error(case: Case, out, q, k, v, d_out, lse, delta) -> float:
    """Compute the largest relative error of evenly spread rows of dq, dk and dv against float64."""
    q, k, v, d_out, lse, delta = (
        np.asarray(x).astype(np.float64) for x in (q, k, v, d_out, lse, delta)
    )
    step, scale, group = case.step, case.step.head_dim**-0.5, q.shape[2] // k.shape[2]
    k_all, v_all = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)

    def softmax(queries, keys):
        """Compute P and dS of some queries and keys, [B, H, queries, keys]."""
        scores = np.einsum("blhk,bmhk->bhlm", q[:, queries], k_all[:, keys]) * scale
        if step.is_causal:
            scores = np.where(keys <= queries[:, None], scores, -np.inf)
        p = np.exp(scores - lse[:, :, queries, None])
        dp = np.einsum("blhk,bmhk->bhlm", d_out[:, queries], v_all[:, keys])
        return p, p * (dp - delta[:, :, queries, None]) * scale

    def sum_groups(x):
        return x.reshape(*x.shape[:2], step.kv_heads, group, -1).sum(3)

    queries, keys = np.arange(step.q_length), np.arange(step.kv_length)
    some_queries, some_keys = map(_spread, (queries, keys))
    _, ds = softmax(some_queries, keys)
    dq = np.einsum("bhlm,bmhk->blhk", ds, k_all)
    p, ds = softmax(queries, some_keys)
    dk = sum_groups(np.einsum("bhlm,blhk->bmhk", ds, q))
    dv = sum_groups(np.einsum("bhlm,blhk->bmhk", p, d_out))
    gradients = (np.asarray(x).astype(np.float64) for x in out)
    rows = some_queries, some_keys, some_keys
    return max(
        float(np.linalg.norm(actual[:, at] - right) / np.linalg.norm(right))
        for actual, at, right in zip(gradients, rows, (dq, dk, dv), strict=True)
    )


def _options(case: Case) -> dict:
    return {"is_causal": case.step.is_causal, "scale": case.step.head_dim**-0.5}


def _spread(rows: np.ndarray) -> np.ndarray:
    return rows[np.unique(np.linspace(0, rows.size - 1, _CHECKED_ROWS).astype(int))]
