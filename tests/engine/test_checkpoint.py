"""Checkpoints: any strategy restores any other's bit for bit; broken ones are refused by name."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from parallax.engine.checkpoint import Checkpoints
from tests.engine.states import (
    CONFIG,
    STRATEGIES,
    arrays,
    assert_same,
    batch,
    compiled,
    mesh_of,
    step_of,
)
from tests.selection import together

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TENSOR = STRATEGIES["tensor_pipeline"]


@pytest.fixture(scope="module")
def trained():
    """A state after two steps, so that its moments are not zero."""
    state = step_of(TENSOR).init(jax.random.key(0), mesh_of(TENSOR))
    for seed in range(2):
        state, _ = compiled(TENSOR)(state, batch(seed))
    return state


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """Steps 1 to 3 of which 2 and 3 stay, all the same state under tensor_pipeline."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, step_of(TENSOR), trained, {"position": {"at": step}})
    return folder


@pytest.fixture
def copy(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "copy"))


def restore(folder, strategy=TENSOR, **options):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(step_of(strategy), mesh_of(strategy), **options)


# A padded pipeline (which wrote the first), stages of unequal depth and one device.
FEW = ("tensor_pipeline", "layerwise", "one device")


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(FEW, marks=pytest.mark.full),
        pytest.param(tuple(STRATEGIES), marks=pytest.mark.exhaustive),
    ],
    ids=len,
)
def test_every_pair_of_strategies_restores_bit_for_bit(names, trained, written, tmp_path):
    expected = arrays(TENSOR, trained)
    assert any("nu" in name and np.abs(x).max() > 0 for name, x in expected.items())
    strategies = {name: STRATEGIES[name] for name in names}
    states = {name: restore(written, s).state for name, s in strategies.items()}
    for saver, strategy in strategies.items():
        with Checkpoints(tmp_path / saver) as checkpoints:
            checkpoints.save(7, step_of(strategy), states[saver], {})
            for other in strategies.values():
                found = checkpoints.restore(step_of(other), mesh_of(other))
                assert_same(arrays(other, found.state), expected)
                wanted = step_of(other).shardings(mesh_of(other))
                placed = jax.tree.map(
                    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), found.state, wanted
                )
                assert all(jax.tree.leaves(placed))


@pytest.mark.full
@together(STRATEGIES, "layerwise", "two_level")
def test_the_next_loss_is_the_same(chosen, trained, written):
    _, exact = compiled(TENSOR)(trained, batch(9))
    for strategy in chosen:
        _, loss = compiled(strategy)(restore(written, strategy).state, batch(9))
        assert abs(float(loss) / float(exact) - 1) < 1e-9


def test_what_goes_with_it(written):
    found = restore(written)
    assert found.step == 3
    assert found.meta["position"] == {"at": 3}
    assert found.meta["strategy"]["name"] == "tensor_pipeline"
    assert restore(written, step=2).meta["position"] == {"at": 2}


def test_the_newest_stay(written):
    with Checkpoints(written) as checkpoints:
        assert checkpoints.steps() == [2, 3]
    assert sorted(p.stem for p in (written / "checksums").glob("*.json")) == ["2", "3"]
    with pytest.raises(ValueError, match=r"no checkpoint of step 1\. There are \[2, 3\]"):
        restore(written, step=1)
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(written, keep=0)


def files_of(folder, step):
    return [p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()]


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip_a_bit, truncate, Path.unlink], ids=lambda f: f.__name__)
def test_a_broken_file_is_named_with_what_to_use_instead(copy, trained, harm):
    before = {p: p.read_bytes() for p in files_of(copy, 2)}
    for path in [p for p in files_of(copy, 3) if p.stat().st_size]:
        whole = path.read_bytes()
        harm(path)
        if path.name != "_CHECKPOINT_METADATA" or path.is_file():
            with pytest.raises(ValueError, match=r"step 3.*Use step 2") as error:
                restore(copy)
            assert path.name in str(error.value)
        path.write_bytes(whole)
    assert_same(arrays(TENSOR, restore(copy, step=2).state), arrays(TENSOR, trained))
    assert restore(copy).step == 3
    assert {p: p.read_bytes() for p in files_of(copy, 2)} == before


def test_a_run_killed_before_its_checksums_were_written(copy, trained):
    (copy / "checksums" / "3.json").unlink()
    assert_same(arrays(TENSOR, restore(copy).state), arrays(TENSOR, trained))


def test_another_model_is_refused_by_its_fields(copy):
    other = CONFIG.replace(d_ff=128, qk_norm=True)
    step = step_of(TENSOR, other)
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(ValueError, match="d_ff 64, here 128; qk_norm False, here True"),
    ):
        checkpoints.restore(step, mesh_of(TENSOR))


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        restore(tmp_path)


KILLED = """
import sys
import jax
import numpy as np
from parallax.engine.checkpoint import Checkpoints
from tests.engine.states import STRATEGIES, mesh_of, step_of

strategy = STRATEGIES["one device"]
step, mesh = step_of(strategy), mesh_of(strategy)
state = step.init(jax.random.key(0), mesh)
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    first = (checkpoints.steps() or [0])[-1]
    for number in range(first + 1, first + 1000):
        filled = jax.tree.map(lambda x: x * 0 + np.asarray(number, x.dtype), state)
        checkpoints.save(number, step, filled, {})
        print(number, flush=True)
"""


@pytest.mark.full
@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments_the_previous_step_loads(times, tmp_path):
    """kill -9 while saves follow one another; the next process goes on in the same folder."""
    random = np.random.default_rng(0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "1"}
    for _ in range(times):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()  # a save is under way
        child.stdout.readline()  # and one is complete
        time.sleep(random.uniform(0, 0.3))
        child.kill()
        said = child.stdout.read().split()
        child.stdout.close()
        child.wait()
        with Checkpoints(tmp_path) as checkpoints:
            newest = checkpoints.steps()[-1]
            found = checkpoints.restore(step_of(TENSOR), mesh_of(TENSOR))
        assert found.step == newest
        if said:
            assert newest >= int(said[-1]) - 1
        for name, x in arrays(TENSOR, found.state).items():
            assert (x == np.asarray(newest, x.dtype)).all(), name


def test_metadata_is_json(written):
    checksums = json.loads((written / "checksums" / "3.json").read_text())
    assert all(len(x) == 64 for x in checksums.values())
