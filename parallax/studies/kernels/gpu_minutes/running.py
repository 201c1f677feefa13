"""Run a part of the plan: one process per group, killed when its time is up, and a deadline."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from parallax.studies.kernels.gpu_minutes.group import append, end_of_item
from parallax.studies.kernels.gpu_minutes.plan import Group, Part

# Seconds between SIGTERM and SIGKILL.
_GRACE_S = 5
# A group is not started with less time.
_LEAST_S = 12
# Exit statuses of `timeout` if it ended the process: by SIGTERM, or by SIGKILL.
_KILLED = (124, 137)
LOG = "log.txt"

# (group, seconds it may take) -> exit status.
Start = Callable[[Group, float], int]


def run_part(
    part: Part,
    record: Path,
    start: Start,
    *,
    clock: Callable[[], float] = time.monotonic,
    on_progress: Callable[[str], None] = print,
) -> None:
    """Run the groups in order until the part's deadline; every item leaves a line.

    Args:
      record: the file that groups append to.
      start: runs a group and returns its exit status.
    """
    deadline = clock() + part.deadline_s
    for group in part.groups:
        began = clock()
        limit_s = min(group.limit_s, deadline - began - _GRACE_S)
        status = None if limit_s < _LEAST_S else start(group, limit_s)
        _name_the_rest(group, record, status)
        said = "not reached" if status is None else f"exit {status}"
        on_progress(f"{group.name}: {said}, {clock() - began:.0f} s")


def start_group(command: Sequence[str], record: Path, *, rehearse: bool = False) -> Start:
    """Return a function that runs `command NAME --record= --until=` under `timeout`, with a log."""

    def start(group: Group, limit_s: float) -> int:
        options = [f"--record={record}", f"--until={time.time() + limit_s:.1f}"]
        options += ["--rehearse"] * rehearse
        with (record.parent / LOG).open("a", encoding="utf-8") as log:
            log.write(f"--- {group.name}\n")
            log.flush()
            return subprocess.run(
                ["timeout", "-k", str(_GRACE_S), f"{limit_s:.1f}", *command, group.name, *options],
                stdout=log, stderr=subprocess.STDOUT, env=_environment(rehearse), check=False,
            ).returncode  # fmt: skip

    return start


GROUP = (sys.executable, "-m", "parallax.studies.kernels.gpu_minutes.group")


def _name_the_rest(group: Group, record: Path, status: int | None) -> None:
    """Append lines for the items that have none: the group ended on the first one."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    ended = {
        line["item"]
        for line in map(json.loads, lines)
        if line["kind"] == "item" and line["group"] == group.name
    }
    left = [item.name for item in group.items if item.name not in ended]
    if status is not None and left:
        how = "hung" if status in _KILLED else "failed"
        append(record, end_of_item(group.name, left.pop(0), how, why=f"exit status {status}"))
    for name in left:
        append(record, end_of_item(group.name, name, "not reached"))


def _environment(rehearse: bool) -> dict[str, str]:
    """Return this process's environment, with this checkout and one platform."""
    changed = {
        "JAX_PLATFORMS": "cuda",
        "JAX_ENABLE_X64": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONUNBUFFERED": "1",
    }
    if rehearse:
        changed |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "XLA_FLAGS": "",
        }
    return {**os.environ, **changed}
