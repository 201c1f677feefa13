"""One of several processes that train, save and restore: `python FILE PORT COUNT NUMBER ACT...`.

Acts run one after another, each on all processes; process 0 prints what they return as JSON.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

DEVICES = 8  # of all processes together


def main(port, count, number, acts):
    jax.config.update("jax_num_cpu_devices", DEVICES // count)
    jax.config.update("jax_enable_x64", True)
    import parallax as px

    px.initialize(f"localhost:{port}", count, number)
    found = {}
    for act in acts:
        name, _, arguments = act.partition(":")
        found[act] = globals()[f"act_{name}"](*filter(None, arguments.split(",")))
    if number == 0:
        print(json.dumps(found))


def strategies():
    from parallax.strategies import data_parallel, hybrid, ring_sequence, tensor_pipeline, ulysses

    return {
        # Weights of three layers fill two stages up; copies of them are on other processes.
        "pipeline": hybrid(tensor_pipeline(2, 2), data_parallel(2)),
        "ring": ring_sequence(8),
        "ulysses": hybrid(ulysses(4), data_parallel(2)),
        "data": data_parallel(8),
    }


def step_and_mesh(name):
    from parallax.distributed.devices import ordered_devices
    from tests.engine.states import step_of

    strategy = strategies()[name]
    return step_of(strategy), strategy.mesh.build(ordered_devices()[: strategy.mesh.size])


def whole_arrays(step, state):
    from parallax.distributed.values import on_host
    from parallax.engine.whole_state import named, whole

    return {name: on_host(x) for name, x in named(whole(step, state)).items()}


def act_save(folder, name):
    """Save a state whose numbers differ everywhere, with zeros of both signs, and write it down."""
    from parallax.engine.checkpoint import Checkpoints

    step, mesh = step_and_mesh(name)
    state = step.init(jax.random.key(0), mesh)
    shardings = step.shardings(mesh)

    def change(x):
        if x.ndim < 2:
            return x
        numbers = jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)
        return numbers * (numbers > 0) * np.asarray(-1, x.dtype)  # a half is -0.0

    state = jax.jit(lambda s: jax.tree.map(change, s), out_shardings=shardings)(state)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(5, step, state, {"position": {}})
    arrays = whole_arrays(step, state)
    if jax.process_index() == 0:
        np.savez(Path(folder) / "expected.npz", allow_pickle=False, **arrays)
    return {"negative_zeros": int(sum((np.signbit(x) & (x == 0)).sum() for x in arrays.values()))}


def act_restore(folder, name):
    """Restore under a strategy, and compare with what was saved, bit for bit, on every process."""
    from parallax.distributed import shared_reads
    from parallax.engine.checkpoint import Checkpoints

    step, mesh = step_and_mesh(name)

    def restored():
        with Checkpoints(folder) as checkpoints:
            before = read_bytes()
            state = checkpoints.restore(step, mesh).state
            return state, gathered(read_bytes() - before)

    shared_reads._LEAST_BYTES = 1 << 40  # as if every process read for itself
    alone = restored()[1]
    shared_reads._LEAST_BYTES = 1
    state, read = restored()
    wanted = step.shardings(mesh)
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, wanted)
    assert all(jax.tree.leaves(same))
    arrays = whole_arrays(step, state)
    expected = np.load(Path(folder) / "expected.npz")
    assert set(expected) == set(arrays)
    for key, x in arrays.items():
        assert x.tobytes() == expected[key].tobytes(), key
    return {"read": read, "alone": alone, "arrays": len(arrays)}


def read_bytes():
    """Return the bytes that orbax has read from files in this process."""
    import tensorstore

    found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_")
    read = [x for x in found if x["name"].endswith("bytes_read")]
    return sum(value["value"] for x in read for value in x["values"])


def gathered(number):
    from parallax.distributed.agreement import gather

    return [int(x) for x in gather("a figure", str(number))]


def act_train(workdir, data, name, steps, save_every):
    """Train and return the losses."""
    import parallax as px
    from tests.engine.states import BATCH, CONFIG, SEQ_LEN

    strategy = strategies()[name]
    run = px.train(
        CONFIG, [data], workdir, strategy=strategy, steps=int(steps), batch=BATCH,
        seq_len=SEQ_LEN, param_dtype="float64", save_every=int(save_every),
        optimizer=px.Adamw(1e-2, warmup_steps=2, clip_norm=0.5),
    )  # fmt: skip
    return {"first": run.first_step, "losses": run.losses}


def act_rows(data):
    """Return the rows that each process reads for a batch, and two batches."""
    from parallax.distributed.values import on_host
    from parallax.engine.data import Batches, read_files

    step, mesh = step_and_mesh("pipeline")
    sharding = step.sharded.abstract_inputs(mesh)[0].sharding
    batches = Batches(read_files([data], 250), 16, 32, 0, sharding)
    tokens = [on_host(next(batches)).tolist()]
    read = next(batches._iterator)
    batches.seek({"next_index": 1})
    tokens.append(on_host(next(batches)).tolist())
    return {"read": gathered(len(read)), "tokens": tokens, "position": batches.position}


def act_weights(folder):
    """Load a published folder; return the bytes that each process read, and check the numbers."""
    from parallax.distributed import shared_reads
    from parallax.distributed.devices import ordered_devices
    from parallax.distributed.values import on_host
    from parallax.models import huggingface
    from parallax.models.huggingface import files
    from parallax.programs.sharded_model import ShardedTransformer
    from parallax.requests.naming import resolve_model
    from parallax.workload import Workload

    config, path = resolve_model(folder)
    assert path is not None
    read, read_before = [0], files.TensorFiles.read

    def counted(self, name, index):
        x = read_before(self, name, index)
        read[0] += x.nbytes
        return x

    files.TensorFiles.read = counted
    shared_reads._LEAST_BYTES = 1
    strategy = strategies()["data"]
    mesh = strategy.mesh.build(ordered_devices())
    sharded = ShardedTransformer(config, strategy, Workload(8, 32))
    params = huggingface.load(path, sharded, mesh)
    spread = gathered(read[0])
    shared_reads._LEAST_BYTES, read[0] = 1 << 40, 0  # as if every process read for itself
    alone = huggingface.load(path, sharded, mesh)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(alone), strict=True):
        assert x.sharding == y.sharding
        assert on_host(x).tobytes() == on_host(y).tobytes()
    files.TensorFiles.read = read_before
    return {"read": spread, "alone": gathered(read[0])}


def act_refusals(folder, data):
    """Return the error of every process in runs that one of them cannot take part in."""
    import parallax as px
    from parallax.distributed.agreement import from_first, gather
    from tests.engine.states import BATCH, CONFIG, SEQ_LEN

    number, folder = jax.process_index(), Path(folder)
    odd = number == 2

    def error_of(data, workdir, **changes):
        given = {"steps": 2, "batch": BATCH, "seq_len": SEQ_LEN, "param_dtype": "float64"}
        given |= {"strategy": strategies()["data"], "on_progress": lambda line: None}
        try:
            px.train(CONFIG, [data], workdir, **(given | changes))
        except Exception as error:
            return gather("errors", f"{type(error).__name__}: {error}")
        raise AssertionError("it ran")

    found = {}
    found["another seed"] = error_of(data, folder / "a", seed=7 if odd else 0)
    # Process 2 is in another folder, so that the same names are other files there.
    cwd = folder / ("elsewhere" if odd else "here")
    cwd.mkdir(parents=True, exist_ok=True)
    os.chdir(cwd)
    if not odd:
        Path("local.txt").write_text("text " * 4000)
    found["no data"] = error_of("local.txt", folder / "b")
    found["not shared"] = error_of(data, Path("run"))
    found["left there"] = gather("left", json.dumps(sorted(map(str, Path().rglob("*")))))
    if os.geteuid() == 0:
        # Pytest's own folders are closed to other users.
        open_ = Path(from_first("a folder", tempfile.mkdtemp() if number == 0 else ""))
        if number == 0:
            open_.chmod(0o755)
            (open_ / "shut").mkdir()
            shutil.copy(data, open_ / "tokens.bin")
        gather("made", "")
        if odd:
            os.seteuid(65534)
        found["shut"] = error_of(open_ / "tokens.bin", open_ / "shut")
        os.seteuid(0)
        found["left in shut"] = sorted(map(str, (open_ / "shut").rglob("*")))
        gather("seen", "")
        if number == 0:
            shutil.rmtree(open_)
    found["lock"] = second_run(error_of, data, folder / "held")
    found["not finite"] = error_of(
        data, folder / "wild", optimizer=px.Adamw(1e30, warmup_steps=0, clip_norm=0)
    )
    return found


def second_run(error_of, data, workdir):
    """Return the errors of a run whose folder another process, no part of it, holds."""
    import fcntl

    workdir.mkdir(exist_ok=True)
    if jax.process_index():
        return error_of(data, workdir)
    with (workdir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 17 on elsewhere since noon")
        file.flush()
        return error_of(data, workdir)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
