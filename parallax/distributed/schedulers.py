"""What a scheduler says about this process: its number, the others, and its GPUs.

Slurm, Open MPI and Kubernetes are detected by JAX. What JAX cannot know is decided here: which of
a node's GPUs belong to a process when there are fewer processes than GPUs on it.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Scheduler = Literal["Slurm", "Open MPI", "Kubernetes"]
# Where Slurm has these, it shows each task its own GPUs alone.
_GPUS_PER_TASK = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK")
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Settings:
    """The arguments of `jax.distributed.initialize`; None is left to JAX's detection.

    Attributes:
      scheduler: what started this process; None if nothing known did.
      coordinator: HOST:PORT of process 0.
      num_processes, process_id: the number of processes, and of this one.
      local_devices: numbers of this process's GPUs among the visible ones; None is all of them.
    """

    scheduler: Scheduler | None
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    local_devices: list[int] | None

    @property
    def is_incomplete(self) -> bool:
        """Whether JAX has to ask the scheduler for something."""
        return None in (self.coordinator, self.num_processes, self.process_id)


@dataclass(frozen=True)
class Task:
    """One of several processes that a scheduler started together.

    Attributes:
      number, count: of this process, and of all.
      local_number, local_count: the same on this node.
    """

    scheduler: Scheduler
    number: int
    count: int
    local_number: int
    local_count: int


def started_task(environment: Mapping[str, str] = os.environ) -> Task | None:
    """Return what Slurm (srun) or Open MPI (mpirun) says of this process; None without them.

    Under both, mpirun has started the processes, and Slurm only mpirun's own daemons.
    """
    if {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"} <= set(environment):
        return Task(
            "Open MPI", *(int(environment[f"OMPI_COMM_WORLD_{name}"])
            for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
        )  # fmt: skip
    if {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"} <= set(environment):
        count = int(environment["SLURM_STEP_NUM_TASKS"])
        per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", str(count))
        node = int(environment.get("SLURM_NODEID", 0))
        return Task(
            "Slurm", int(environment["SLURM_PROCID"]), count, int(environment["SLURM_LOCALID"]),
            _tasks_of_node(per_node, node),
        )  # fmt: skip
    return None


def settings(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Settings:
    """Complete what a user gave by what the scheduler says.

    Raises:
      ValueError: something is missing and no scheduler says it, a number is out of range, or the
        GPUs of a node cannot be divided by its processes.
    """
    task = started_task()
    scheduler = task.scheduler if task else None
    if scheduler is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        scheduler = "Kubernetes"
    devices = None
    if task is not None:
        shown_own = any(name in os.environ for name in _GPUS_PER_TASK)
        devices = own_gpus(replace(task, local_count=1) if shown_own else task, visible_gpus())
        num_processes = task.count if num_processes is None else num_processes
        process_id = task.number if process_id is None else process_id
    given = {
        "--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id
    }  # fmt: skip
    missing = [name for name, value in given.items() if value is None]
    if missing and scheduler is None:
        raise ValueError(
            f"distributed: {', '.join(missing)} not given, and no Slurm, Open MPI or Kubernetes "
            "job was found around this process. Give --coordinator=HOST:PORT (of process 0), "
            "--num_processes=N and --process_id=I (from 0), or start it with srun or mpirun."
        )
    if coordinator is not None and not _is_address(coordinator):
        raise ValueError(
            f"coordinator {coordinator!r}: expected HOST:PORT, such as node1:12345, with a port of "
            "1 to 65535."
        )
    if coordinator is None:
        _check_detection(scheduler)
    if not 0 <= (process_id or 0) < (num_processes or 1 << 30):
        raise ValueError(
            f"process_id {process_id}: expected a number from 0, less than the "
            f"number of processes, {num_processes}."
        )
    return Settings(scheduler, coordinator, num_processes, process_id, devices)


def slurm_port(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the coordinator's port in a Slurm step; None outside of one.

    JAX's own depends on the job alone, so two steps of a job would have the same.
    """
    if not {"SLURM_JOB_ID", "SLURM_STEP_ID"} <= set(environment):
        return None
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    return 61_440 + (job + 499 * step) % 4096


def _is_address(text: str) -> bool:
    found = re.fullmatch(r"\S+:(\d{1,5})", text)
    return found is not None and 1 <= int(found[1]) <= 65_535


def own_gpus(task: Task, gpus: int) -> list[int] | None:
    """Return which of the visible GPUs are a process's own; None without GPUs.

    JAX gives every process of Slurm and Open MPI the one GPU of its local number. That is wrong for
    one process a node, and where the scheduler shows each process its own GPU alone.

    Args:
      task: the process.
      gpus: number of GPUs that the process sees.

    Raises:
      ValueError: the GPUs do not divide by the node's processes.
    """
    if not gpus:
        return None
    if gpus == 1 or task.local_count == 1:
        return list(range(gpus))
    if gpus % task.local_count:
        raise ValueError(
            f"{task.local_count} processes on this node see {gpus} GPUs, which do not divide. "
            "Start one process a node, or one a GPU."
        )
    each = gpus // task.local_count
    return list(range(task.local_number * each, (task.local_number + 1) * each))


def visible_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process sees; JAX is not started."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return len([name for name in shown.split(",") if name.strip() not in ("", "-1")])
    return len(list(_NVIDIA_GPUS.iterdir())) if _NVIDIA_GPUS.is_dir() else 0


def _check_detection(scheduler: Scheduler | None) -> None:
    """Raise ValueError where JAX cannot find process 0's address by itself."""
    from importlib.util import find_spec

    is_mpi_5 = scheduler == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in os.environ
    if is_mpi_5 and find_spec("mpi4py") is None:
        raise ValueError(
            "Open MPI 5 does not tell process 0's address. Give --coordinator=HOST:PORT, HOST "
            "being the first of the hosts, or pip install mpi4py."
        )
    if scheduler == "Kubernetes" and find_spec("kubernetes") is None:
        raise ValueError(
            "Kubernetes: the package that asks it for process 0's address is missing. Get it with "
            "pip install 'jax[k8s]', or give --coordinator, --num_processes and --process_id."
        )


def _tasks_of_node(per_node: str, node: int) -> int:
    """Return one node's number of tasks from Slurm's list, such as `8(x2),4`."""
    counts: list[int] = []
    for part in per_node.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={per_node!r}: expected such as 8(x2),4.")
        counts += [int(found[1])] * int(found[2] or 1)
    if node >= len(counts):
        raise ValueError(f"SLURM_NODEID={node}: SLURM_STEP_TASKS_PER_NODE={per_node!r} is shorter.")
    return counts[node]
