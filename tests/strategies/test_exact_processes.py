"""Two and four processes compute what one does: steps, gradients, logits and tokens.

Compiling and tracing take minutes, so a few strategies are tested. All of them over two processes
and over four, with the worst error of each (`docs/development.md`):

  python -m tests.strategies.test_exact_processes
"""

import functools
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from parallax.lenses.tolerance import FLOAT64_LIMIT
from parallax.lenses.verifying import parameter_errors, relative_error
from parallax.strategies import data_parallel
from tests.distributed.running import free_port, run
from tests.strategies.over_processes import ALL, NEW_TOKENS, STEPS, TWELVE, case, compute

pytestmark = pytest.mark.slow

# The batch over both processes, slices in each.
FEW = ("data_parallel+two_level",)
# With four processes one would have no device of twelve.
EVERY = {2: (*ALL, TWELVE), 4: ALL}
# Stages over both processes, tensors in each.
OTHERS = {2: (TWELVE, "tensor_pipeline"), 4: ("hsdp", "ring_sequence")}


@functools.lru_cache
def unsharded(config):
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        return compute(config, data_parallel(1))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder of compiled programs for this file alone: see `_compile_once`."""
    return tmp_path_factory.mktemp("programs")


def check(processes, names, folder, programs):
    """Run strategies over processes and return what differs, with the worst error of each."""
    port, start = free_port(), time.monotonic()
    commands = [
        ("-m", "tests.strategies.over_processes", port, processes, k, folder, *names)
        for k in range(processes)
    ]
    ended = run(
        commands, folder, timeout=1800, JAX_COMPILATION_CACHE_DIR=str(programs),
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )  # fmt: skip
    assert [e.status for e in ended] == [0] * processes, ended[0].err[-3000:]
    print(f"\n{processes} processes: {time.monotonic() - start:.0f} s")
    wrong = {}
    for name in names:
        with np.load(folder / f"{name}.npz") as found:
            errors = errors_of(dict(found), unsharded(case(name)[0]))
        print(f"{name}: " + ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items()))
        if not all(error <= FLOAT64_LIMIT for error in errors.values()):
            wrong[name] = errors
    return wrong


def errors_of(found, exact):
    """The worst relative L2 error of each kind; of tokens, the share that differs."""
    assert found.keys() == exact.keys()
    assert found["losses"].shape == (STEPS,)
    assert found["tokens"].shape[1] == NEW_TOKENS
    assert 0.3 < np.sqrt(np.mean(exact["logits"] ** 2)) < 3
    assert exact["losses"][-1] < exact["losses"][0] - 0.1  # it learns
    assert len(np.unique(exact["tokens"])) > 20
    errors = {
        "losses": float(np.abs(found["losses"] / exact["losses"] - 1).max()),
        "logits": relative_error(found["logits"], exact["logits"]),
        "tokens": float((found["tokens"] != exact["tokens"]).mean()),
    }
    for kind in ("gradient", "parameter"):
        keys = [key for key in exact if key.startswith(kind)]
        errors[kind] = max(parameter_errors([found[k] for k in keys], [exact[k] for k in keys]))
    return errors


@pytest.mark.full
def test_a_strategy_over_two_processes(tmp_path, programs):
    assert not check(2, FEW, tmp_path, programs)


@pytest.mark.exhaustive
@pytest.mark.parametrize("processes", OTHERS)
def test_more_strategies(processes, tmp_path, programs):
    assert not check(processes, OTHERS[processes], tmp_path, programs)


def test_the_comparison_sees_small_differences():
    exact = {
        "losses": np.array([3.0, 2.0, 1.0]), "logits": np.ones((2, 3)),
        "tokens": np.arange(64).reshape(2, NEW_TOKENS), "gradient w": np.ones(4),
        "parameter w": np.ones(4),
    }  # fmt: skip
    assert max(errors_of(exact, exact).values()) == 0
    for key in exact:
        found = {k: x.copy() for k, x in exact.items()}
        found[key].flat[1] += 1 if key == "tokens" else 1e-9
        assert max(errors_of(found, exact).values()) > FLOAT64_LIMIT, key


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    with tempfile.TemporaryDirectory() as folder:
        for processes, names in EVERY.items():
            results = Path(folder, str(processes))
            results.mkdir()
            print(
                "not equal:", check(processes, names, results, Path(folder, "programs")) or "none"
            )
