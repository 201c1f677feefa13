"""Training by several processes: the same numbers as one, no file read twice, faults by name."""

import json

import jax
import numpy as np
import pytest

import parallax as px
from parallax.engine.checkpoint import Checkpoints
from parallax.engine.data import Batches, read_files
from tests.distributed.running import ROOT, free_port, run
from tests.engine import training_process
from tests.engine.states import BATCH, CONFIG, SEQ_LEN

pytestmark = pytest.mark.full

PROGRAM = ROOT / "tests" / "engine" / "training_process.py"
GOLDEN = ROOT / "tests" / "models" / "huggingface" / "golden"


def act(count, folder, *acts):
    """Run acts on `count` processes; returns what process 0 found, by act."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    commands = [(PROGRAM, port, count, k, *acts) for k in range(count)]
    ended = run(commands, folder, timeout=900)
    for k, one in enumerate(ended):
        assert one.status == 0, (k, one.err[-3000:])
    found = json.loads(ended[0].out.splitlines()[-1])
    return {name.partition(":")[0]: value for name, value in found.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tokens.bin"
    np.random.default_rng(0).integers(0, 250, 5000).astype("<u2").tofile(path)
    return path


@pytest.fixture(scope="module")
def four(data, tmp_path_factory):
    """The folder of four processes, and what they found."""
    folder = tmp_path_factory.mktemp("four")
    return folder, act(
        4, folder / "logs", f"save:{folder},pipeline", f"train:{folder}/run,{data},pipeline,4,2",
        f"restore:{folder},data", f"rows:{data}", f"weights:{GOLDEN / 'llama'}",
        f"refusals:{folder / 'refused'},{data}",
    )  # fmt: skip


def test_losses_are_one_devices(four, data, tmp_path):
    exact = px.train(
        CONFIG, [data], tmp_path, steps=4, batch=BATCH, seq_len=SEQ_LEN, param_dtype="float64",
        optimizer=px.Adamw(1e-2, warmup_steps=2, clip_norm=0.5),
    )  # fmt: skip
    found = four[1]["train"]["losses"]
    assert len(found) == 4
    assert np.abs(np.divide(found, exact.losses) - 1).max() < 1e-11


def test_process_0_alone_writes_the_files_of_a_run(four):
    folder = four[0] / "run"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    names = {p.name for p in folder.iterdir()} - {"metrics.jsonl", "run.json"}
    assert {n for n in names if "tfevents" not in n} == {"checkpoints", "checksums"}
    assert {p.name for p in (folder / "checksums").iterdir()} == {"2.json", "4.json"}


def assert_restored(folder, name):
    step, mesh = training_process.step_and_mesh(name)
    with Checkpoints(folder) as checkpoints:
        arrays = training_process.whole_arrays(step, checkpoints.restore(step, mesh).state)
    expected = np.load(folder / "expected.npz")
    assert set(arrays) == set(expected)
    assert all(x.tobytes() == expected[key].tobytes() for key, x in arrays.items())


def test_a_checkpoint_of_four_is_restored_to_the_bit_by_four_one_and_two(four, tmp_path):
    folder, found = four
    assert found["save"]["negative_zeros"] > 1000
    assert_restored(folder, "ring")
    assert act(2, tmp_path / "two", f"restore:{folder},ulysses")


def test_what_several_processes_hold_is_read_once_over_all(four):
    """Data parallel on 4 processes: all need all, and each reads its part."""
    weights, checkpoint = four[1]["weights"], four[1]["restore"]
    assert len(set(weights["alone"])) == 1
    assert sum(weights["read"]) == weights["alone"][0]
    assert max(weights["read"]) == min(weights["read"])
    # Orbax also reads its own tables, and whole pieces as they were written.
    assert sum(checkpoint["read"]) < 0.5 * sum(checkpoint["alone"])
    assert max(checkpoint["read"]) < 0.5 * min(checkpoint["alone"])


def test_each_process_reads_its_rows_of_the_same_batches(four, data):
    found = four[1]["rows"]
    assert found["read"] == [8, 8, 8, 8]  # stages cross processes too: two hold the same rows
    assert found["position"] == {"next_index": 2}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = Batches(read_files([data], 250), 16, 32, 0, sharding)  # pyright: ignore[reportArgumentType]
    assert [np.asarray(next(batches)).tolist() for _ in range(2)] == found["tokens"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("another seed", "processes differ: seed is 7 on process 2 ("),
        ("no data", "ValueError: process 2 ("),
        ("no data", "data local.txt: No such file or directory"),
        ("not shared", "ValueError: process 2 ("),
        ("not shared", "what process 0 writes there does not appear here"),
        ("lock", "process 17 on elsewhere since noon trains in it. Use another --workdir"),
        ("not finite", "TrainingDivergedError: step"),
    ],
)
def test_what_one_process_cannot_do_is_said_by_all(four, case, message):
    errors = four[1]["refusals"][case]
    assert len(errors) == 4
    for error in errors:
        assert message in error


def test_a_folder_that_is_not_shared_is_left_as_it_was(four):
    refused = four[1]["refusals"]
    here = json.dumps(["local.txt"])
    assert refused["left there"] == [here, here, "[]", here]


def test_a_folder_that_one_process_cannot_write(four):
    refused = four[1]["refusals"]
    if "shut" not in refused:
        pytest.skip("only the superuser can run one process as another user")
    assert all("ValueError: process 2 (" in error for error in refused["shut"])
    assert all("shut: Permission denied" in error for error in refused["shut"])
    assert refused["left in shut"] == []
