"""The MLP side by side: the kernel's and XLA's, which here has no stack to cut a layer out of."""

from collections.abc import Callable

import numpy as np

from parallax.kernels.cache_tiled_mlp import cases
from parallax.kernels.cache_tiled_mlp.cases import Case, program

# Rows checked against float64: all of them would take minutes on a CPU.
_CHECKED_ROWS = 4


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """As `cases.inputs`."""
    return cases.inputs(case, seed)


def baselines(case: Case) -> dict[str, Callable | str]:
    """By name: a function of `draw`'s arrays -> [T, D], or why it does not run."""

    def call(implementation: str) -> Callable:
        run = program(case, implementation)
        return lambda *arrays: run(*arrays)[0]

    return {"mosaic": call("mosaic"), "xla": call("xla")}


def error(case: Case, out, x, *arrays) -> float:
    """Relative error of some rows of the output, spread over it, against float64 in NumPy."""
    rows = np.unique(np.linspace(0, case.tokens - 1, _CHECKED_ROWS).astype(int))
    few = case._replace(tokens=len(rows))
    (expected,) = cases.exact(few, np.asarray(x)[rows], *map(np.asarray, arrays))
    found = np.asarray(out)[rows].astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
