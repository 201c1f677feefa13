"""Commands on several processes: what each prints, and what is refused before any work."""

import socket

import pytest

from tests.distributed.running import free_port, run
from tests.distributed.test_schedulers import SLURM

TRAIN = ("-m", "parallax.experiments", "train", "--model=ring_sp", "--small", "--virtual",
         "--mesh=data=2", "--strategy=data_parallel", "--seq_len=16")  # fmt: skip


def commands(folder, port, *more, count=2):
    (folder / "text.txt").write_text("to be " * 1000)
    return [
        (*TRAIN, "--distributed", f"--coordinator=localhost:{port}", f"--num_processes={count}",
         f"--process_id={k}", f"--workdir={folder / 'run'}", "--data=text.txt", *more)
        for k in range(count)
    ]  # fmt: skip


@pytest.mark.slow
def test_flags_that_differ_are_named_by_all(tmp_path):
    first, second = commands(tmp_path, free_port())
    ended = run([(*first, "--batch=8"), (*second, "--batch=4")], tmp_path)
    for e in ended:
        assert e.status == 2, e
        assert "batch is 4 on process 1 (" in e.err
        assert "Traceback" not in e.err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_settings_that_differ_are_named_by_all(tmp_path):
    both = commands(tmp_path, free_port())
    ended = run(both, tmp_path, {}, {"JAX_DEFAULT_MATMUL_PRECISION": "highest"})
    for e in ended:
        assert e.status == 2, e
        assert 'JAX_DEFAULT_MATMUL_PRECISION is "highest" on process 1' in e.err


@pytest.mark.slow
def test_a_process_that_never_starts(tmp_path):
    port = free_port()
    (ended,) = run(commands(tmp_path, port, "--start_timeout=2")[:1], tmp_path)
    assert ended.status == 3
    assert f"2 processes did not all meet at localhost:{port} within 2 s" in ended.err


def test_a_port_in_use(tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        (ended,) = run(commands(tmp_path, port)[:1], tmp_path)
    assert ended.status == 2
    assert f"port {port} cannot be had on process 0's host: Address already in use" in ended.err


def test_srun_without_distributed_is_refused(tmp_path):
    (ended,) = run([(*TRAIN, "--data=x", "--workdir=run")], tmp_path, SLURM)
    assert ended.status == 2
    assert "this is process 11 of 16 that Slurm started, and without --distributed" in ended.err


def test_flags_of_processes_without_distributed(tmp_path):
    (ended,) = run([(*TRAIN, "--data=x", "--workdir=run", "--num_processes=2")], tmp_path)
    assert ended.status == 2
    assert "num_processes: without --distributed" in ended.err
