"""Two real processes on two made-up hosts measure together: steps, pairs and links."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lenses.measuring_process import LATE_S

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
HOSTS = ["host0", "host1"]
ORDERS_OF_SEED_0 = [False, True, False, True, True, False]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both processes found, which has to be the same."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    text = tmp_path_factory.mktemp("text") / "some.txt"
    text.write_text("To be, or not to be. " * 9, encoding="utf-8")
    variables = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    variables["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "tests.lenses.measuring_process", str(port)]
    processes = [
        subprocess.Popen(
            [*command, str(index), str(text)],
            cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        end = time.monotonic() + 240
        said = [p.communicate(timeout=max(1.0, end - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors[-3000:]
    one, other = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert one == other
    return one


@pytest.mark.full
def test_a_step_is_over_when_all_are_and_the_slowest_is_named(found):
    measured = found["measured"]
    assert measured["devices"] == 4
    assert measured["repeats"] == 3
    first, second = measured["processes"]
    assert [p["process"] for p in (first, second)] == [0, 1]
    assert [p["host"] for p in (first, second)] == HOSTS
    assert first["step_s"]["value"] < LATE_S < second["step_s"]["value"]
    assert measured["step_s"] == second["step_s"]
    assert any("'seq' crosses them" in note for note in measured["notes"])


@pytest.mark.full
def test_pairs_have_process_0s_orders_and_the_slowest_times(found):
    runs = found["pairs"]["runs"]
    # Process 1 was given another seed.
    assert runs["first_ran_first"] == ORDERS_OF_SEED_0
    assert len(runs["first_s"]) == len(runs["second_s"]) == 6
    for times, processes in (("first_s", "first_processes"), ("second_s", "second_processes")):
        mean = sum(runs[times]) / 6
        assert [p["host"] for p in runs[processes]] == HOSTS
        assert all(p["step_s"]["value"] <= mean * (1 + 1e-12) for p in runs[processes])
    assert [note.partition(":")[0] for note in found["pairs"]["notes"]] == [
        "ring_sequence", "data_parallel",
    ]  # fmt: skip


def test_links_inside_between_and_over_the_hosts(found):
    rows = [(r["nodes"], r["devices"], r["kind"]) for r in found["links"]]
    assert rows == [
        (1, 2, "all-reduce"), (1, 2, "p2p"), (2, 2, "all-reduce"), (2, 2, "p2p"),
        (2, 4, "all-reduce"),
    ]  # fmt: skip
    assert all(r["seconds"] > 0 for r in found["links"])


def test_what_one_process_cannot_do_is_refused_on_both(found):
    assert "process 1 (host1) would have none" in found["alone"]
    assert found["no text"].startswith("process 1 (host1): --text=")
    assert "No such file" in found["no text"]
