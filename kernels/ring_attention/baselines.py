"""Baselines of whole attention: the kernel in 1 or 16 steps or other tilings, and its peers."""

import importlib
import importlib.util
import itertools
from collections.abc import Callable

import jax
import numpy as np

from parallax.kernels.ring_attention.cases import Case, inputs, step_of
from parallax.kernels.ring_attention.tiles import CANDIDATES, DEFAULTS

STEPS = 16
# Rows checked against float64; all rows of a long case would take minutes on a CPU.
_CHECKED_ROWS = 64


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k and v."""
    return inputs(case, seed)[:3]


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function (q, k, v) -> [B, L, H, K], or why it does not run."""
    scale = case.head_dim**-0.5
    options = {"is_causal": case.is_causal, "scale": scale}
    ring = "a causal mask is inside one pair of blocks"
    cuts = {
        f"mosaic: {tile}": _steps(case._replace(tile=tile), "mosaic", 1)
        for tile in CANDIDATES[case.head_dim]
        if tile != DEFAULTS[case.head_dim]
    }
    return {
        "mosaic": _steps(case, "mosaic", 1),
        **cuts,
        f"mosaic, {STEPS} steps": ring if case.is_causal else _steps(case, "mosaic", STEPS),
        "cudnn": lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, implementation="cudnn", **options
        ),
        "tokamax": _tokamax(options),
        "xla": _steps(case, "xla", 1),
    }


def error(case: Case, out, q, k, v) -> float:
    """Compute the relative error of evenly spread rows of the output against float64 NumPy."""
    rows = np.unique(np.linspace(0, case.q_length - 1, _CHECKED_ROWS).astype(int))
    repeat = case.heads // case.kv_heads
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q[:, rows], k, v))
    k, v = np.repeat(k, repeat, axis=2), np.repeat(v, repeat, axis=2)
    scores = np.einsum("blhk,bmhk->bhlm", q, k) * case.head_dim**-0.5
    if case.is_causal:
        scores = np.where(np.arange(case.kv_length) <= rows[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhlm,bmhk->blhk", p / p.sum(-1, keepdims=True), v)
    actual = np.asarray(out)[:, rows].astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _steps(case: Case, implementation: str, steps: int) -> Callable:
    """Return attention in a number of steps over equal pieces of the keys, as a ring does it."""

    step = step_of(case, implementation)

    def attend(q, k, v):
        made, length = None, k.shape[1]
        edges = [length * i // steps for i in range(steps + 1)]
        for start, end in itertools.pairwise(edges):
            made = step(q, k[:, start:end], v[:, start:end], made, last=end == length)
        assert made is not None
        return made[0]

    return attend


def _tokamax(options) -> Callable | str:
    if importlib.util.find_spec("tokamax") is None:
        return "not installed"
    tokamax = importlib.import_module("tokamax")
    return lambda q, k, v: tokamax.dot_product_attention(q, k, v, **options)
