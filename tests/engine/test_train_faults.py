"""Training by several processes that are killed, stopped, told to end or out of disk."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from parallax.engine.checkpoint import Checkpoints
from parallax.engine.optimizer import Adamw
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainStep
from parallax.requests.naming import resolve_model
from parallax.strategies import data_parallel
from parallax.workload import Workload
from tests.distributed.running import run, started, wait
from tests.engine.train_command import (
    MODEL,
    commands,
    complete,
    kill_one,
    losses,
    wait_until,
)

pytestmark = pytest.mark.full

LEAVE_WITHIN_S = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tokens.bin"
    np.random.default_rng(0).integers(0, 250, 5000).astype("<u2").tofile(path)
    return path


def restored(workdir):
    """The step of the newest checkpoint once it is restored here, by one process, and checked."""
    config, _ = resolve_model(MODEL, dtype="float64")
    sharded = ShardedTransformer(config, data_parallel(1), Workload(8, 16))
    step = TrainStep(sharded, Adamw().build(100_000), param_dtype="float64")
    with Checkpoints(workdir) as checkpoints:
        found = checkpoints.restore(step, data_parallel(1).mesh.build(jax.devices()[:1]))
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.state))
    return found.step


def killed(folder, data, times, seed, count=2):
    """Kill a random process of a run `times` times, each time after it has resumed."""
    random, seen, workdir = np.random.default_rng(seed), [], folder / "run"
    for number in range(times):
        one = kill_one(folder / str(number), workdir, data, random, count, count)
        assert one["resumed"] == one["before"], one
        for other in one["others"]:
            assert other.status not in (0, 1), other
            assert f"process {one['victim']} (" in other.err, other
            assert "is lost" in other.err, other
        assert one["seconds"] < LEAVE_WITHIN_S, one
        seen.append(one)
    assert restored(workdir) == complete(workdir) == seen[-1]["newest"]
    return seen


def test_a_random_process_is_killed_twice(data, tmp_path):
    """kill -9 mid-step or mid-save: each run goes on from the newest complete step."""
    seen = killed(tmp_path, data, 2, 0)
    print([(one["victim"], one["newest"], round(one["seconds"], 1)) for one in seen])


@pytest.mark.exhaustive
def test_a_random_process_is_killed_ten_times(data, tmp_path):
    """Five runs side by side: they wait more than they compute."""
    with ThreadPoolExecutor(5) as pool:
        lanes = [pool.submit(killed, tmp_path / str(k), data, 2, 1 + k) for k in range(5)]
        seen = [one for lane in lanes for one in lane.result()]
    assert len(seen) == 10
    assert {one["victim"] for one in seen} == {0, 1}
    print(f"10 kills, 10 resumed, others left within {max(one['seconds'] for one in seen):.1f} s")


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.full)])
def test_sigterm_saves_and_half_the_processes_go_on(count, data, tmp_path):
    """SIGTERM to one; all save one step and end well, and half of them end the run."""
    workdir, folders = tmp_path / "run", [tmp_path / name for name in ("many", "half", "one")]
    for folder in folders:
        folder.mkdir()
    flags = ("--steps=40", "--save_every=1000", "--warmup_steps=2")
    with started(commands(count, workdir, data, *flags), folders[0]) as processes:
        wait_until(lambda: len(losses(workdir)) > 1, processes, folders[0])
        processes[-1].send_signal(signal.SIGTERM)
        ended = wait(processes, folders[0])
    assert [one.status for one in ended] == [0] * count, [one.err[-1500:] for one in ended]
    assert "stopped; step" in ended[0].out
    stopped = complete(workdir)
    assert 2 < stopped < 40
    assert sorted(losses(workdir)) == list(range(1, stopped + 1))
    half = run(commands(count // 2, workdir, data, *flags), folders[1])
    assert [one.status for one in half] == [0] * (count // 2), [one.err[-1500:] for one in half]
    assert f"resuming from step {stopped}" in half[0].err
    (alone,) = run(commands(1, tmp_path / "alone", data, *flags), folders[2])
    assert alone.status == 0, alone.err
    exact, found = losses(tmp_path / "alone"), losses(workdir)
    assert sorted(found) == list(range(1, 41))
    assert max(abs(found[step] / exact[step] - 1) for step in exact) < 1e-11


def test_a_stopped_process_is_named(data, tmp_path):
    """SIGSTOP mid-training; the checkpoint that was complete loads."""
    workdir = tmp_path / "run"
    flags = ("--steps=100000", "--save_every=1")
    with started(commands(2, workdir, data, *flags), tmp_path) as processes:
        wait_until(lambda: complete(workdir) > 1, processes, tmp_path)
        processes[1].send_signal(signal.SIGSTOP)
        at = time.monotonic()
        status = processes[0].wait(60)
        assert time.monotonic() - at < LEAVE_WITHIN_S
        processes[1].kill()
    assert status == 3
    assert "process 1 (" in (tmp_path / "0.err").read_text()
    assert restored(workdir) == complete(workdir)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a few checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_full_disk_loses_no_complete_checkpoint(count, small_disk, data, tmp_path):
    workdir = small_disk / "run"
    log = () if count == 1 else (f"--log_dir={tmp_path}",)
    flags = ("--save_every=1", "--keep=1000", *log)
    ended = run(commands(count, workdir, data, "--steps=1000", *flags), tmp_path)
    for one in ended:
        assert one.status == 2, one
        assert one.err.count("No space left on device") == 1, one.err
        assert "Traceback" not in one.err, one.err
    newest = complete(workdir)
    assert newest > 1
    assert f"and the newest complete one is {newest}" in ended[0].err
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    flags = "--save_every=1", "--keep=1000", f"--steps={newest + 2}"
    (again,) = run(commands(1, workdir, data, *flags), tmp_path)
    assert again.status == 0, again
    assert f"resuming from step {newest}" in again.err
    assert sorted(losses(workdir)) == list(range(1, newest + 3))
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {str(step) for step in range(1, newest + 3)}
