"""Baselines of the MLP: the kernel and XLA, here without a stack to copy a layer out of."""

from collections.abc import Callable

import numpy as np

from parallax.kernels.cache_tiled_mlp.cases import Case, exact, inputs, program
from parallax.kernels.errors import relative_error

# Rows checked against float64; all rows would take minutes on a CPU.
_CHECKED_ROWS = 4

draw = inputs


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function of `draw`'s arrays to [T, D], or why it does not run."""
    runs = {name: program(case, name) for name in ("mosaic", "xla")}
    return {name: lambda *arrays, run=run: run(*arrays)[0] for name, run in runs.items()}


def error(case: Case, out, x, *arrays) -> float:
    """Compute the relative error of evenly spread rows of the output against float64 NumPy."""
    rows = np.unique(np.linspace(0, case.tokens - 1, _CHECKED_ROWS).astype(int))
    few = case._replace(tokens=len(rows))
    (expected,) = exact(few, np.asarray(x)[rows], *map(np.asarray, arrays))
    return relative_error(np.asarray(out)[rows], expected)
