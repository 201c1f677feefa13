"""Baselines of whole attention: the kernel in 1 or 16 steps or other tilings, and its peers."""

import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable

import jax
import numpy as np
from scipy.special import softmax

from parallax.kernels.errors import relative_error
from parallax.kernels.ring_attention.cases import Case, every_head, inputs, masked_scores, step_of
from parallax.kernels.ring_attention.tiles import CANDIDATES

STEPS = 16
# Rows checked against float64; all rows of a long case would take minutes on a CPU.
_CHECKED_ROWS = 64


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k and v."""
    return inputs(case, seed)[:3]


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function (q, k, v) -> [B, L, H, K], or why it does not run."""
    ring = "a causal mask is inside one pair of blocks"
    cuts = {
        f"mosaic: {tile}": _steps(case._replace(tile=tile), "mosaic", 1)
        for tile in CANDIDATES[case.head_dim]
        if tile != case.kind.cut
    }
    return {
        "mosaic": _steps(case, "mosaic", 1),
        **cuts,
        f"mosaic, {STEPS} steps": ring if case.is_causal else _steps(case, "mosaic", STEPS),
        **peers(case),
        "xla": _steps(case, "xla", 1),
    }


def peers(case: Case) -> dict[str, Callable | str]:
    """Return the attention of other libraries by name, or why it does not run."""
    options = {"is_causal": case.is_causal, "scale": case.head_dim**-0.5}
    cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn", **options)
    if importlib.util.find_spec("tokamax") is None:
        return {"cudnn": cudnn, "tokamax": "not installed"}
    tokamax = importlib.import_module("tokamax").dot_product_attention
    return {"cudnn": cudnn, "tokamax": functools.partial(tokamax, **options)}


def error(case: Case, out, q, k, v) -> float:
    """Compute the relative error of evenly spread rows of the output against float64 NumPy."""
    rows = spread(case.q_length)
    weights = softmax(masked_scores(case, q, k, rows, np.arange(case.kv_length), {}), axis=-1)
    expected = np.einsum("bhlm,bmhk->blhk", weights, every_head(case, v))
    return relative_error(np.asarray(out)[:, rows], expected)


def spread(length: int) -> np.ndarray:
    """Return evenly spread rows, of which the errors are computed."""
    return np.unique(np.linspace(0, length - 1, _CHECKED_ROWS).astype(int))


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
