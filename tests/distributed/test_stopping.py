"""The step after which all processes stop: a notice before the first step, and a second stop."""

import json

import pytest

from tests.distributed.running import free_port, run

PROGRAM = """
import json, os, signal, sys, time
import parallax as px
from parallax.distributed.agreement import wait_for_all
from parallax.distributed.stopping import stop_at

number, port, notices = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "notices"
px.initialize(f"localhost:{port}", 2, number, save_on_sigterm=notices)
if number == 1 and notices:
    os.kill(os.getpid(), signal.SIGTERM)  # as a resumed run restores
time.sleep(3)  # JAX tells the others within a second
found = []
for first in (1200, 0):  # a resumed run, and another in the same process
    wait_for_all("start")
    for step in range(first + 1, first + 60):
        asked = number == 0 and step == first + 20
        if stop_at(step, asked):
            break
        time.sleep(0.02)
    found.append(step)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notices", "steps"),
    [("notices", lambda first: first < 1215), ("none", lambda first: first == 1220)],
)
def test_all_stop_at_one_step(tmp_path, notices, steps):
    (tmp_path / "program.py").write_text(PROGRAM)
    port = free_port()
    ended = run([("program.py", k, port, notices) for k in range(2)], tmp_path)
    assert [e.status for e in ended] == [0, 0], [e.err for e in ended]
    found = [json.loads(e.out.splitlines()[-1]) for e in ended]
    assert found[0] == found[1]
    assert steps(found[0][0]), found
    assert found[0][1] == 20
