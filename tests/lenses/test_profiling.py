"""A real trace on virtual CPU devices, and a GPU's made-up one through all that reads it."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from parallax.lenses import profiling
from parallax.lenses.measuring import measure_prefill, on_devices
from parallax.lenses.profiling import ProfileTask, profile_step
from parallax.lenses.text import read_text
from parallax.meshes.cluster import cluster
from parallax.programs.steps import make_step
from parallax.strategies import data_parallel, tensor_pipeline
from tests.lenses.test_profile_join import MODULE, STEPS, streams
from tests.lenses.xspaces import save
from tests.strategies.cases import SMALL, workload

pytestmark = pytest.mark.slow
CONFIG = SMALL.replace(dtype="float32")


@pytest.fixture(
    scope="module", params=[data_parallel(8), tensor_pipeline(4, 2)], ids=lambda s: s.name
)
def profiled(request, tmp_path_factory):
    """A strategy, the folder asked for, and the profile of its measured step."""
    strategy, folder = request.param, tmp_path_factory.mktemp("profile") / "new"
    run = workload(strategy)
    text = read_text(None, run.tokens)[0]
    measured = measure_prefill(CONFIG, strategy, run, text, 1, ProfileTask(str(folder)))
    assert measured.profile is not None
    return strategy, folder, measured.profile


def test_a_real_trace_is_attributed(profiled):
    """Each operation is in the trace as often as the compiled program says it runs."""
    strategy, _, found = profiled
    assert found.attributed_share >= 0.95
    assert (found.devices, found.steps) == (8, profiling.STEPS)
    apart = {o.name: (o.launches, o.executions) for o in found.operations
             if o.launches != o.executions}  # fmt: skip
    assert apart == {}
    kinds = {o.opcode for o in found.operations}
    assert "while" in kinds
    assert ("all-reduce" in kinds) == (strategy.name == "tensor_pipeline")
    assert any(".py:" in o.source for o in found.operations)
    times = [o.measured_s for o in found.operations]
    assert times == sorted(times, reverse=True)
    assert sum(times) == pytest.approx(found.attributed_s)


def test_times_of_a_real_trace_are_possible(profiled):
    found = profiled[2]
    assert 0 < found.busy_s <= found.span_s
    assert found.busy_s <= found.device_s * (1 + 1e-9)
    assert any(name.startswith("ThunkExecutor") for name in found.runtime)


def test_a_cpu_is_not_priced_as_a_gpu(profiled):
    found = profiled[2]
    assert found.modelled_s is None
    assert found.rates == ""
    assert "no modelled times: a CPU program is not priced" in found.notes[0]


def test_the_trace_is_where_viewers_look_for_it(profiled):
    _, folder, found = profiled
    (session,) = (folder / "plugins" / "profile").iterdir()
    assert found.trace == str(next(session.glob("*.xplane.pb")))


def fake_gpus(count, kind="NVIDIA H100 80GB HBM3"):
    """A mesh of GPUs that are not there."""
    made = [SimpleNamespace(platform="gpu", device_kind=kind, process_index=i // 2)
            for i in range(count)]  # fmt: skip
    return SimpleNamespace(
        devices=np.array(made, dtype=object), size=count, shape={"seq": count}
    )  # fmt: skip


def read(folder, mesh, task, monkeypatch):
    monkeypatch.setattr(profiling, "STEPS", STEPS)
    step = SimpleNamespace(trips={}, routing=None)
    save({"/device:GPU:0": streams(), "/device:GPU:1": streams(5.0)}, folder)
    return profiling._read(folder, MODULE, step, mesh, task)  # pyright: ignore[reportArgumentType]


def test_a_gpus_program_is_priced_for_the_gpu_at_hand(tmp_path, monkeypatch):
    task = ProfileTask("here", cluster("h100_2x8"))  # of another size than these two
    found = read(tmp_path, fake_gpus(2), task, monkeypatch)
    assert found.rates.startswith("h100")
    assert found.rates.endswith(", h100_1x2")
    assert found.notes == ()
    assert found.attributed_share == pytest.approx(113 / 117.5)
    assert found.modelled_s == pytest.approx(sum(o.modelled_s or 0 for o in found.operations))
    assert {o.name for o in found.largest} == {"send.1", "gemm.1", "out", "first.7", "call.5"}
    assert all(o.error_s is not None for o in found.operations)
    other = read(tmp_path, fake_gpus(2, "NVIDIA L4"), task, monkeypatch)
    assert other.rates == ""
    assert "no modelled times: NVIDIA L4. The cost model knows NVIDIA H100" in other.notes[0]


def test_devices_that_the_trace_does_not_hold_are_said(tmp_path, monkeypatch):
    where = SimpleNamespace(trips={}, routing=None)
    found = read(tmp_path, fake_gpus(4), ProfileTask("here"), monkeypatch)
    assert "2 of the mesh's 4 devices; every process wrote its own" in found.notes[-1]
    assert found.rates == ""  # a program of 2 partitions is not one of these 4
    assert "no modelled times" in found.notes[0]
    save({"/device:GPU:1": streams()}, tmp_path)
    alone = profiling._read(tmp_path, MODULE, where, fake_gpus(2), ProfileTask("here"))  # pyright: ignore[reportArgumentType]
    assert "events of 1 of this process's 2 devices" in alone.notes[-1]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    strategy = data_parallel(1)
    run = workload(strategy)
    step, mesh = make_step(CONFIG, strategy, run), strategy.mesh.build(jax.devices()[:1])
    function, arguments = on_devices(step, mesh, read_text(None, run.tokens)[0])
    with pytest.raises(ValueError, match="profile: .*file.*: Not a directory. Give a folder"):
        profile_step(function, arguments, step, mesh, ProfileTask(str(tmp_path / "file")))


def test_a_trace_that_was_not_written_is_one_clear_line(tmp_path, monkeypatch):
    found = read(tmp_path, fake_gpus(2), ProfileTask("here"), monkeypatch)
    assert found.operations
    (tmp_path / "host.xplane.pb").unlink()
    step = SimpleNamespace(trips={}, routing=None)
    with pytest.raises(ValueError, match=r"left 0 traces .*expected 1. Free space"):
        profiling._read(tmp_path, MODULE, step, fake_gpus(2), ProfileTask("here"))  # pyright: ignore[reportArgumentType]
    shutil.rmtree(tmp_path)
