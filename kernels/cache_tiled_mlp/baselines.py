"""Baselines of the MLP: the kernel and XLA, here without a stack to copy a layer out of."""

from collections.abc import Callable

import numpy as np

from parallax.kernels.cache_tiled_mlp import cases
from parallax.kernels.cache_tiled_mlp.cases import Case, program

# Rows checked against float64; all rows would take minutes on a CPU.
_CHECKED_ROWS = 4


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw the inputs of all baselines, as `cases.inputs` does."""
    return cases.inputs(case, seed)


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function of `draw`'s arrays to [T, D], or why it does not run."""

    def call(implementation: str) -> Callable:
        run = program(case, implementation)
        return lambda *arrays: run(*arrays)[0]

    return {"mosaic": call("mosaic"), "xla": call("xla")}


def error(case: Case, out, x, *arrays) -> float:
    """Compute the relative error of evenly spread rows of the output against float64 NumPy."""
    rows = np.unique(np.linspace(0, case.tokens - 1, _CHECKED_ROWS).astype(int))
    few = case._replace(tokens=len(rows))
    (expected,) = cases.exact(few, np.asarray(x)[rows], *map(np.asarray, arrays))
    actual = np.asarray(out)[rows].astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
