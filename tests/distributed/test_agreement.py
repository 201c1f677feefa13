"""Agreement, order of devices and values over three real processes on two made-up nodes."""

import json

import pytest

from tests.distributed.running import free_port, run

PROGRAM = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import parallax as px
from parallax.distributed import processes

number, port = int(sys.argv[1]), sys.argv[2]
# The scheduler deals processes to nodes in turn: 0 and 2 are on one node.
processes.socket.gethostname = lambda: "left" if number != 1 else "right"
jax.config.update("jax_num_cpu_devices", 2)
px.initialize(f"localhost:{port}", 3, number)

from parallax.distributed.agreement import agree, from_first, gather, together
from parallax.distributed.devices import check_every_process, node_notes, ordered_devices
from parallax.distributed.values import on_host

found = {}

def error(name, act):
    try:
        found[name] = act()
    except ValueError as caught:
        found[name] = str(caught)

found["gather"] = gather("numbers", str(number))
found["from_first"] = from_first("number", str(number))
error("agree", lambda: agree("request", {"batch": 8, "mesh": {"data": 4 if number == 2 else 2}}))
agree("request", {"batch": 8})

def open_file():
    if number == 1:
        raise FileNotFoundError(2, "No such file or directory", "tokens.npy")
    return "read"

error("together", lambda: together("data", open_file))

def refuse():
    raise NotImplementedError("not on any of them")

try:
    together("all", refuse)
except NotImplementedError as caught:
    found["own error"] = str(caught)
devices = ordered_devices()
found["order"] = [d.process_index for d in devices]
far = Mesh(np.array(devices).reshape(3, 2), ("data", "tensor"))
found["far"] = node_notes(far)
found["near"] = node_notes(Mesh(np.array(devices).reshape(2, 3), ("tensor", "data")))
error("idle", lambda: check_every_process(Mesh(np.array(devices[:4]), ("data",))))
check_every_process(far)
x = np.arange(12.0).reshape(6, 2)
for name, spec in (("split", P("data")), ("both", P("data", "tensor")), ("whole", P())):
    array = jax.make_array_from_callback(x.shape, NamedSharding(far, spec), lambda at: x[at])
    found[name] = bool((on_host(array) == x).all())
print(json.dumps(found))
"""


@pytest.mark.slow
def test_three_processes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    port = free_port()
    ended = run([("program.py", k, port) for k in range(3)], tmp_path)
    assert [e.status for e in ended] == [0, 0, 0], [e.err for e in ended]
    # Gloo prints on standard output too.
    found = [json.loads(e.out.splitlines()[-1]) for e in ended]
    assert found[0] == found[1] == found[2]
    assert found[0]["gather"] == ["0", "1", "2"]
    assert found[0]["from_first"] == "0"
    assert "mesh.data is 4 on process 2 (left) and 2 on process 0 (left)" in found[0]["agree"]
    assert "batch" not in found[0]["agree"]
    assert found[0]["together"].startswith("process 1 (right): [Errno 2] No such file")
    assert "tokens.npy" in found[0]["together"]
    assert found[0]["own error"] == "not on any of them"
    assert found[0]["order"] == [0, 0, 2, 2, 1, 1]
    assert found[0]["far"] == ["mesh over 2 nodes: 'data' crosses them, 'tensor' stays inside"]
    assert found[0]["near"][0] == "mesh over 2 nodes: 'tensor' and 'data' cross them"
    assert found[0]["near"][1].startswith("warning: 'tensor' communicates in every layer")
    assert "process 1 (right) would have none" in found[0]["idle"]
    assert found[0]["split"] is found[0]["both"] is found[0]["whole"] is True
    for e in ended:
        assert "3 processes on 2 node(s)" in e.err
