"""What Slurm and Open MPI say of a process, and which GPUs are its own."""

import pytest

from parallax.distributed.schedulers import Task, own_gpus, settings, slurm_port, started_task

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "gpu[01-02]",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environment", "task"),
    [
        (SLURM, Task("Slurm", 11, 16, 3, 8)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8,4(x2)"}, Task("Slurm", 11, 16, 3, 4)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"},
         Task("Slurm", 11, 16, 3, 2)),
        (MPI, Task("Open MPI", 3, 4, 1, 2)),
        # A batch script outside of any step, or salloc's shell, is one process.
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, None),
        # mpirun in a Slurm job: its daemons are Slurm's tasks, and the processes are its own.
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"} | MPI,
         Task("Open MPI", 3, 4, 1, 2)),
        ({}, None),
    ],
)  # fmt: skip
def test_tasks(environment, task):
    assert started_task(environment) == task


@pytest.mark.parametrize(
    ("local_number", "local_count", "gpus", "own"),
    [
        (0, 1, 8, [0, 1, 2, 3, 4, 5, 6, 7]),  # one process a node
        (5, 8, 8, [5]),  # one a GPU
        (5, 8, 1, [0]),  # one a GPU, and the scheduler shows each its own alone
        (1, 2, 8, [4, 5, 6, 7]),
        (0, 4, 0, None),
    ],
)
def test_own_gpus(local_number, local_count, gpus, own):
    assert own_gpus(Task("Slurm", 0, 16, local_number, local_count), gpus) == own


def test_gpus_that_do_not_divide():
    with pytest.raises(ValueError, match="3 processes on this node see 8 GPUs"):
        own_gpus(Task("Slurm", 0, 3, 0, 3), 8)


@pytest.fixture
def alone(monkeypatch):
    for name in (
        *SLURM,
        *MPI,
        "SLURM_GPUS_PER_TASK",
        "SLURM_TRES_PER_TASK",
        "KUBERNETES_SERVICE_HOST",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_settings_are_completed_by_the_scheduler(alone):
    alone.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    for name, value in SLURM.items():
        alone.setenv(name, value)
    found = settings(None, None, None)
    assert (found.scheduler, found.num_processes, found.process_id) == ("Slurm", 16, 11)
    assert (found.coordinator, found.local_devices) == (None, [3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (None, None, None),
            "--coordinator, --num_processes, --process_id not given, and no Slurm",
        ),
        (("a:1", 2, None), "--process_id not given"),
        (("a:1", 2, 2), "expected a number from 0, less than the number of processes, 2"),
        (("a", 2, 1), "expected HOST:PORT"),
        (("a:99999", 2, 1), "with a port of 1 to 65535"),
    ],
)
def test_what_is_missing_is_named(alone, given, message):
    with pytest.raises(ValueError, match=message):
        settings(*given)


@pytest.mark.parametrize("name", ["SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"])
def test_gpus_that_slurm_shows_one_task_alone_are_its_own(alone, name):
    for variable, value in (SLURM | {name: "4", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}).items():
        alone.setenv(variable, value)
    assert settings(None, None, None).local_devices == [0, 1, 2, 3]


def test_steps_of_a_job_have_ports_of_their_own():
    ports = {slurm_port({"SLURM_JOB_ID": "70000", "SLURM_STEP_ID": str(k)}) for k in range(4)}
    assert len(ports) == 4
    assert None not in ports
    assert all(61_440 <= int(port or 0) < 65_536 for port in ports)
    assert slurm_port({"SLURM_JOB_ID": "70000"}) is None


def test_open_mpi_5_needs_an_address(alone):
    for name, value in MPI.items():
        alone.setenv(name, value)
    with pytest.raises(ValueError, match="Open MPI 5 does not tell process 0's address"):
        settings(None, None, None)
    found = settings("node1:9", None, None)
    assert (found.coordinator, found.num_processes, found.process_id) == ("node1:9", 4, 3)
