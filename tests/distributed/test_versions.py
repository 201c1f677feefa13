"""Processes of different versions: named on all."""

import pytest

from tests.distributed.running import free_port, run

PROGRAM = """
import sys
from importlib import metadata
import parallax as px

number, port = int(sys.argv[1]), sys.argv[2]
real = metadata.version
if number == 1:
    metadata.version = lambda name: "0.0.7" if name == "orbax-checkpoint" else real(name)
try:
    px.initialize(f"localhost:{port}", 2, number)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_another_version_is_named_by_all(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    port = free_port()
    for e in run([("program.py", k, port) for k in range(2)], tmp_path):
        assert 'versions.orbax-checkpoint is "0.0.7" on process 1 (' in e.out, e
