"""parallax deploy: a record of losses and switches, and bad input as one line with status 2."""

import json
from pathlib import Path

import pytest

from parallax.engine.deployment.deploying import deploy as run_deploy
from parallax.experiments.__main__ import main

GOLDEN = Path(__file__).resolve().parents[1] / "models" / "huggingface" / "golden" / "llama"


@pytest.fixture
def deploy(tmp_path, capsys):
    """Runs the command in this process, on its 16 devices: (status, output, errors)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["parallax", "deploy", f"--out={tmp_path}", *arguments])
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_losses_and_switches_make_a_record(deploy, tmp_path):
    status, out, err = deploy(
        f"--model={GOLDEN}", "--devices=2",
        "--lose=1", "--switches=2", "--pressure",
        "--microbatches=2", "--max_new_tokens=3", "--layer_formats=1=int8",
        "--prompt=ab", "--prompt=c",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads((tmp_path / "deploy.json").read_text())
    assert found["exact"]
    assert found["setup"]["equals_unsharded"]
    assert found["setup"]["model"]["dtype"] == "float64"
    assert [t["lost"] for t in found["losses"]["trials"]] == [[1]]
    assert found["losses"]["trials"][0]["compiled_programs"] == 0
    assert found["losses"]["unprepared"]["compiled_programs"] > 0
    assert set(found["losses"]["times"]) >= {"detect_s", "move_s", "recompute_s", "resume_s"}
    assert {w: s["count"] for w, s in found["switches"].items()} == {"device": 2, "host": 2}
    assert found["modelled"]["losses"]["resume_s"]["p50"] > 0
    (trial,) = found["losses"]["trials"]
    assert trial["host_to_device_bytes"] > 0
    assert [s["number"] for s in found["pressure"]] == [1]  # half way
    assert "(modelled: the share that fits) below 0.9" in found["pressure"][0]["reason"]
    assert found["switches"]["device"]["copied_bytes"] == 0
    assert found["switches"]["host"]["copied_bytes"] > 0
    assert f"{trial['host_to_device_bytes'] / 1e6:.3f}" in out
    assert "losses: 1; 0 requests lost, 0 with changed tokens" in out
    for said in (
        "time to resume, ms (1 simulated losses)",
        "time to switch",
        "(assumed)",
        "moved and recomputed",
        "device to device MB",
        "automatic switches",
        "below 100 ms",
    ):
        assert said in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model is missing"),
        (["--model=ring_sp"], "has no tokenizer. Use small=True"),
        (["--device_budget=0"], "nothing fits in zero bytes"),
        (["--device_budget=1kB", "--devices=2"], "layer 0 takes"),
        (["--devices=5"], "4 layers for 5 devices"),
        (["--devices=17"], "17 devices are asked for, this process has 16"),
        (["--devices=2", "--spares=2"], "2 spares of 2 devices leave none"),
        (["--lose=one"], "--lose: expected a whole number"),
        (["--layer_formats=0-9=int8"], "layer formats '0-9=int8'"),
        (["--layer_formats=int8"], "expected LAYERS=FORMAT"),
        (["--compression=int3"], "unknown format 'int3'"),
        (["--switches=2", "--max_new_tokens=1"], "must be at least 2, got 1"),
        (["--pressure", "--max_new_tokens=1"], "must be at least 2, got 1"),
        (["--devices=2", "--lose=99"], "no device 99 to lose; the deployment has 0 to 1"),
        (["--devices=1", "--losses=1"], "Give two or more"),
        (["--stronger=none", "--switches=2"], "nothing to switch to"),
        (["--stronger=none"], "stronger: neither switches nor pressure takes a layer to it"),
    ],
)
def test_bad_input_is_one_line(deploy, arguments, message):
    if arguments and "--model" not in arguments[0]:
        arguments = ["--model=ring_sp", "--small", *arguments]
    status, out, err = deploy(*arguments)
    assert status == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("parallax deploy: ")
    assert message in last
    assert out == ""


def test_no_microbatches_is_one_clear_error():
    with pytest.raises(ValueError, match="microbatches must be at least 1, got 0"):
        run_deploy("ring_sp", small=True, microbatches=0)
