"""Training: the same losses under every strategy, resumable to the bit, clear about bad input."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import parallax as px
from parallax.engine import train as training
from parallax.engine.checkpoint import Checkpoints
from parallax.engine.data import Batches, read_files
from parallax.engine.optimizer import Adamw, decayed
from tests.engine.states import BATCH, CONFIG, SEQ_LEN, STRATEGIES, mesh_of, step_of
from tests.selection import often

pytestmark = pytest.mark.slow

RUN = {
    "steps": 6, "batch": BATCH, "seq_len": SEQ_LEN, "param_dtype": "float64", "save_every": 3,
    "optimizer": Adamw(1e-2, warmup_steps=2, clip_norm=0.5),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two files, one of text and one of tokens."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    tokens = np.random.default_rng(0).integers(0, 250, 5000).astype("<u2")
    tokens.tofile(folder / "b.bin")
    return [folder / "a.txt", folder / "b.bin"]


@pytest.fixture(scope="module")
def exact(data, tmp_path_factory):
    """A whole run on one device."""
    return px.train(CONFIG, data, tmp_path_factory.mktemp("exact"), **RUN)


def metrics_of(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


# Runs under the others are resumed below.
@often(("tensor_pipeline", "ring_sequence", "layerwise"), "ring_sequence")
def test_losses_are_one_devices(name, data, exact, tmp_path):
    found = px.train(CONFIG, data, tmp_path, strategy=STRATEGIES[name], **RUN)
    assert len(found.losses) == len(exact.losses) == 6
    assert np.abs(np.divide(found.losses, exact.losses) - 1).max() < 1e-9
    mine, theirs = (
        [x["grad_norm"] for x in metrics_of(folder)] for folder in (found.folder, exact.folder)
    )
    assert np.allclose(mine, theirs, rtol=1e-9)
    assert max(mine) > 0.5  # clipping had something to do


def test_stopped_and_resumed_is_uninterrupted_to_the_bit(data, exact, tmp_path):
    seen = []
    first = px.train(
        CONFIG, data, tmp_path, on_step=lambda step, _: seen.append(step),
        should_stop=lambda: len(seen) >= 3, **RUN,
    )  # fmt: skip
    assert not first.finished
    assert 3 < first.last_step < 6
    second = px.train(CONFIG, data, tmp_path, **RUN)
    assert second.first_step == first.last_step
    assert first.losses + second.losses == exact.losses
    assert [x["step"] for x in metrics_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.full
def test_resumed_under_another_strategy(data, exact, tmp_path):
    seen, said = [], []
    first = px.train(
        CONFIG, data, tmp_path, strategy=STRATEGIES["layerwise"],
        on_step=lambda step, _: seen.append(step), should_stop=lambda: len(seen) >= 2, **RUN,
    )  # fmt: skip
    second = px.train(
        CONFIG, data, tmp_path, strategy=STRATEGIES["tensor_pipeline"], on_progress=said.append,
        **RUN,
    )  # fmt: skip
    losses = first.losses + second.losses
    assert np.abs(np.divide(losses, exact.losses) - 1).max() < 1e-9
    assert any("saved under layerwise" in line for line in said)


OPTIONS: list[dict[str, Any]] = [
    {"strategy": "fsdp", "mesh": "data=8", "gather": "step", "remat": "none"},
    {
        "strategy": "layerwise+data_parallel", "mesh": "stage=2,data=2", "microbatches": 4,
        "schedule": "interleaved", "shard_weights": "auto",
    },
    {
        "strategy": "ring_sequence+data_parallel", "mesh": "seq=2,data=2", "microbatches": 2,
        "shard_optimizer": "data,seq", "remat": "attention",
    },
    {
        "strategy": "tensor_pipeline+data_parallel", "mesh": "stage=2,tensor=2,data=2",
        "schedule": "1f1b", "microbatches": 4, "shard_weights": "data",
    },
]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(OPTIONS[1:3], marks=pytest.mark.full),
        pytest.param(OPTIONS, marks=pytest.mark.exhaustive),
    ],
)
def test_resumed_with_other_options_of_training(changes, data, tmp_path):
    config, run = CONFIG.replace(num_layers=4), {**RUN, "steps": len(changes) + 1}
    exact = px.train(config, data, tmp_path / "exact", **run)
    losses, folder = [], tmp_path / "run"
    for options in changes:
        losses += px.train(config, data, folder, should_stop=lambda: True, **run, **options).losses
    losses += px.train(config, data, folder, **run).losses
    assert np.abs(np.divide(losses, exact.losses) - 1).max() < 1e-11


@pytest.mark.full
def test_layers_that_fill_up_stay_zeros(data, exact, tmp_path):
    strategy = STRATEGIES["layerwise"]
    px.train(CONFIG, data, tmp_path, strategy=strategy, **RUN)
    step, mesh = step_of(strategy), mesh_of(strategy)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3, 6]
        params = checkpoints.restore_params(step.sharded, mesh)
    gradients = jax.jit(step.gradients(mesh))(params, np.zeros((BATCH, SEQ_LEN), np.int32))[1]
    bias = np.asarray(gradients["layers"]["attention"]["out_bias_D"][...])
    assert (np.abs(bias).max(-1) > 0).tolist() == [True, False, True, True]


def test_files_of_a_run(exact):
    run = json.loads((exact.folder / "run.json").read_text())
    assert run["model_config"] == CONFIG.to_dict()
    assert run["steps"] == 6
    assert (run["optimizer"]["kind"], run["optimizer"]["clip_norm"]) == ("adamw", 0.5)
    from tensorboardX.proto import event_pb2

    parse: Any = vars(event_pb2)["Event"].FromString

    (path,) = exact.folder.glob("events.out.tfevents.*")
    found, tags = path.read_bytes(), []
    while found:  # length, its checksum, the event, its checksum
        length = int.from_bytes(found[:8], "little")
        event = parse(found[12 : 12 + length])
        tags += [(event.step, value.tag) for value in event.summary.value]
        found = found[16 + length :]
    assert (6, "loss") in tags
    assert (1, "tokens_per_s") in tags


def test_a_loss_that_is_not_finite_stops_and_keeps_the_good_checkpoint(data, tmp_path):
    wild = RUN | {"save_every": 1, "optimizer": Adamw(1e30, warmup_steps=2, clip_norm=0)}
    with pytest.raises(training.TrainingDivergedError, match=r"step \d: loss .*was not saved"):
        px.train(CONFIG, data, tmp_path, **wild)
    step, mesh = step_of(STRATEGIES["one device"]), mesh_of(STRATEGIES["one device"])
    with Checkpoints(tmp_path) as checkpoints:
        params = checkpoints.restore_params(step.sharded, mesh)
    assert all(math.isfinite(float(x.sum())) for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 8}, "different data: batch 16, here 8"),
        ({"seed": 1}, "different data: seed 0, here 1"),
        ({"steps": 6}, "6 steps are done, 6 are asked for"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"seq_len": 30, "strategy": STRATEGIES["ring_sequence"]}, "does not divide 30"),
    ],
)
def test_runs_that_cannot_go_on_are_refused(exact, data, changes, message):
    before = sorted(p.name for p in (exact.folder / "checkpoints").iterdir())
    with pytest.raises(ValueError, match=message):
        px.train(CONFIG, data, exact.folder, **(RUN | {"steps": 9} | changes))
    assert sorted(p.name for p in (exact.folder / "checkpoints").iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"microbatches": 0}, "microbatches must be a positive integer, got 0"),
        ({"param_dtype": "float8"}, "param_dtype must be one of float16, .*; got 'float8'"),
        ({"remat": "microbatch"}, "remat 'microbatch': it is no more"),
        ({"optimizer": "lion"}, "expected settings or an optax transformation, got 'lion'"),
        ({"optimizer": optax.adamw}, "optax transformation, got <function adamw"),
        ({"gather": "layer"}, "gather layer: no weights are sharded in data_parallel"),
        ({"shard_weights": "auto"}, "shard_weights auto: nothing is sharded"),
    ],
)
def test_values_that_no_run_takes(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        px.train(CONFIG, data, tmp_path / "run", **(RUN | changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "No such file"),
        ("empty.txt", b"", "no tokens in it"),
        ("latin.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("odd.bin", b"abc", "odd number of bytes"),
        ("large.bin", b"\x00\x10", "token 4096 is outside of the vocabulary, 0 to 249"),
        ("broken.npy", b"no array", r"not a \.npy file"),
    ],
)
def test_bad_data(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_files([path], 250)


def test_too_little_data(tmp_path):
    (tmp_path / "short.txt").write_text("short")
    files = read_files([tmp_path / "short.txt"], 256)
    sharding = step_of(STRATEGIES["one device"]).sharded.abstract_inputs(
        mesh_of(STRATEGIES["one device"])
    )[0].sharding  # fmt: skip
    with pytest.raises(ValueError, match="0 windows of 32, fewer than a batch of 16"):
        Batches(files, BATCH, SEQ_LEN, 0, sharding)
    with pytest.raises(ValueError, match="no data"):
        read_files([], 256)


def test_every_window_comes_once_a_pass_in_another_order(data):
    files = read_files(data, 250)
    windows = files.tokens // SEQ_LEN
    sharding = step_of(STRATEGIES["one device"]).sharded.abstract_inputs(
        mesh_of(STRATEGIES["one device"])
    )[0].sharding  # fmt: skip
    batches = Batches(files, 1, SEQ_LEN, 0, sharding)
    passes = [[np.asarray(next(batches)).tobytes() for _ in range(windows)] for _ in range(2)]
    everything = sorted(files.window(i * SEQ_LEN, SEQ_LEN).tobytes() for i in range(windows))
    assert sorted(passes[0]) == sorted(passes[1]) == everything
    assert passes[0] != passes[1]


def test_norms_and_biases_are_not_decayed():
    params = step_of(STRATEGIES["one device"]).sharded.shapes
    flat = jax.tree_util.tree_flatten_with_path(decayed(params))[0]
    kept = {jax.tree_util.keystr(path, simple=True, separator="/") for path, yes in flat if not yes}
    assert all(any(w in name for w in ("scale", "bias")) for name in kept)
    assert len(kept) == 3 + 6  # norms, and biases of attention and MLP
    assert len(flat) == 9 + 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"warmup_steps": -1}, "warmup_steps"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Adamw(**options)


def test_schedule():
    rate = Adamw(1.0, warmup_steps=10, final_share=0.1).schedule(100)
    assert [float(np.asarray(rate(step))) for step in (0, 5, 10, 100)] == pytest.approx(
        [0, 0.5, 1.0, 0.1]
    )


def test_a_run_is_a_model_for_generate(exact, data):
    assert Path(exact.folder).is_dir()
    with pytest.raises(ValueError, match="no weights and no tokenizer"):
        px.generate(exact.folder, "the", max_new_tokens=2)
