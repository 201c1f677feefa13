"""Generating text over two processes: the texts of one, on both; what is refused by both."""

import json
from typing import Any

import pytest

import parallax as px
from tests.distributed.running import free_port, run

PROMPTS = ["def f(", "import"]
MESH = {"strategy": "data_parallel+tensor_pipeline", "mesh": "data=4,tensor=4"}
DRAWN: dict[str, Any] = {"temperature": 0.9, "top_k": 40, "seed": 3}
PROGRAM = """
import json, sys
import jax
import parallax as px

number, port, calls = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 8)
px.initialize(f"localhost:{port}", 2, number)
found, pieces = [], {}
for call in calls:
    prompts = call.pop("prompts")[number]
    try:
        made = px.generate(
            "ring_sp", prompts, small=True, max_new_tokens=8,
            on_text=lambda n, text: pieces.update({n: pieces.get(n, "") + text}), **call,
        )
        generation = made.generation
        found.append([made.texts, generation.notes, generation.latency.itl_s, pieces])
        pieces = {}
    except ValueError as error:
        found.append(str(error))
print(json.dumps(found))
"""


@pytest.mark.full
def test_texts_of_one_process_and_errors_on_all(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    both = [PROMPTS, PROMPTS]
    # A token that ends the first text early ends it on both processes.
    (first, _) = px.generate(
        "ring_sp", PROMPTS, small=True, max_new_tokens=8
    ).generation.continuations
    stops: dict[str, Any] = {"stop_tokens": [first.tokens[4]]}
    calls = [
        {"prompts": both} | MESH | stops,
        {"prompts": both} | MESH | DRAWN,
        {"prompts": both, "strategy": "layerwise", "mesh": "stage=4"},
        {"prompts": [PROMPTS, ["def f(", "other"]]} | MESH,
        {"prompts": both, "strategy": "nope"},
    ]
    port = free_port()
    ended = run(
        [("program.py", k, port, json.dumps(calls)) for k in range(2)], tmp_path,
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )  # fmt: skip
    assert [e.status for e in ended] == [0, 0], ended
    found = [json.loads(e.out.splitlines()[-1]) for e in ended]
    for (texts, notes, itl_s, pieces), options in zip(found[0][:2], (stops, DRAWN), strict=True):
        exact = px.generate("ring_sp", PROMPTS, small=True, max_new_tokens=8, **options)
        assert tuple(texts) == exact.texts
        assert [pieces["0"], pieces["1"]] == texts
        assert notes[-1].startswith("times are those of process 0 (")
        assert len(itl_s) == 7
    assert found[0][0][0][0] != found[0][1][0][0]
    assert found[0] == found[1]  # times too: process 0's
    idle, different, unknown = found[0][2:]
    assert "mesh stage=4 takes 4 of 16 devices, and process 1 (" in idle
    assert 'prompts is ["def f(", "other"] on process 1 (' in different
    assert unknown.startswith("unknown strategy 'nope'")


@pytest.mark.full
def test_process_0_prints_and_writes(tmp_path):
    port = free_port()
    command = ["-m", "parallax.experiments", "generate", "--model=ring_sp", "--small", "--virtual",
               "--strategy=data_parallel", "--mesh=data=2", "--prompt=def f(", "--json=made.json",
               "--max_new_tokens=3", "--distributed", f"--coordinator=localhost:{port}",
               "--num_processes=2"]  # fmt: skip
    ended = run(
        [[*command, "--process_id=0"], [*command, "--process_id=1"]], tmp_path,
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )  # fmt: skip
    assert [e.status for e in ended] == [0, 0], ended
    made = json.loads((tmp_path / "made.json").read_text())
    assert ended[0].out == made["texts"][0] + "\n"
    assert "TTFT" in ended[0].err
    assert "times are those of process 0 (" in ended[0].err
    assert ended[1].out == ""
    assert "TTFT" not in ended[1].err
    assert made["texts"][0] in (tmp_path / "logs" / "process-1.log").read_text()
