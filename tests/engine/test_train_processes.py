"""Training by several processes: the same numbers as one, no file read twice, faults by name."""

import json

import numpy as np
import pytest

import parallax as px
from tests.distributed.running import ROOT, free_port, run
from tests.engine import training_process
from tests.engine.states import BATCH, CONFIG, SEQ_LEN

pytestmark = pytest.mark.slow

PROGRAM = ROOT / "tests" / "engine" / "training_process.py"
GOLDEN = ROOT / "tests" / "models" / "huggingface" / "golden"


def act(count, folder, *acts):
    """Run acts on `count` processes; returns what process 0 found, by act."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    ended = run([(PROGRAM, port, count, k, *acts) for k in range(count)], folder, timeout=300)
    for k, one in enumerate(ended):
        assert one.status == 0, (k, one.err[-3000:])
    return json.loads(ended[0].out.splitlines()[-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tokens.bin"
    np.random.default_rng(0).integers(0, 250, 5000).astype("<u2").tofile(path)
    return path


@pytest.fixture(scope="module")
def four(data, tmp_path_factory):
    """What four processes did and found."""
    folder = tmp_path_factory.mktemp("four")
    found = act(
        4, folder / "logs", f"save:{folder},pipeline", f"train:{folder}/run,{data},pipeline,4,2",
        f"restore:{folder},data", f"rows:{data}", f"weights:{GOLDEN / 'llama'}",
        f"refusals:{folder / 'refused'},{data}",
    )  # fmt: skip
    return folder, {name.partition(":")[0]: value for name, value in found.items()}


@pytest.fixture(scope="module")
def exact(data, tmp_path_factory):
    """Eight steps on one device."""
    return px.train(
        CONFIG, [data], tmp_path_factory.mktemp("exact"), steps=4, batch=BATCH, seq_len=SEQ_LEN,
        param_dtype="float64", optimizer=px.Adamw(1e-2, warmup_steps=2, clip_norm=0.5),
    )  # fmt: skip


def test_losses_are_one_devices(four, exact):
    found = four[1]["train"]["losses"]
    assert np.abs(np.divide(found, exact.losses) - 1).max() < 1e-11
    lines = (four[0] / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_checkpoint_of_four_is_restored_by_four_one_and_two_to_the_bit(four, tmp_path):
    folder, found = four
    assert found["save"]["negative_zeros"] > 1000
    assert found["restore"]["arrays"] > 20
    from parallax.engine.checkpoint import Checkpoints

    step, mesh = training_process.step_and_mesh("ring")
    with Checkpoints(folder) as checkpoints:
        arrays = training_process.whole_arrays(step, checkpoints.restore(step, mesh).state)
    expected = np.load(folder / "expected.npz")
    assert set(arrays) == set(expected)
    assert all(x.tobytes() == expected[name].tobytes() for name, x in arrays.items())
    assert act(2, tmp_path / "two", f"restore:{folder},ulysses")
