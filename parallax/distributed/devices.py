"""The devices of all processes in the order of their nodes, and what a mesh over them crosses."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from parallax.distributed.cuda_plugin import quiet_without_driver
from parallax.distributed.processes import describe, nodes, process_count

# Axes along which strategies communicate in every layer.
_NEAR_AXES = ("tensor", "head_group", "head_slice")


def ordered_devices() -> list[Any]:
    """Return all devices by node, then process, then number; all processes have to call it.

    A mesh is row-major over them, so its first axis is the one that crosses nodes, whatever order
    the scheduler numbered the processes in. With one process it is `jax.devices()`.
    """
    quiet_without_driver()
    if process_count() == 1:
        return list(jax.devices())
    node = nodes()
    return sorted(jax.devices(), key=lambda d: (node[d.process_index], d.process_index, d.id))


def free_bytes(device: Any) -> int | None:
    """Return the bytes free on a device of this process; None where nothing says so.

    CPU devices share the machine's memory: it is all that one of them and the others have.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None


def node_count() -> int:
    """Return the number of nodes; all processes have to call it."""
    return len(set(nodes()))


def node_of(device: Any) -> int:
    """Return the number of a device's node, from 0; all processes have to call it."""
    return nodes()[device.process_index]


def check_every_process(mesh: Mesh) -> None:
    """Raise ValueError if a process would have no device of the mesh."""
    having = {d.process_index for d in mesh.devices.flat}
    idle = [p for p in range(process_count()) if p not in having]
    if idle:
        axes = ",".join(f"{name}={size}" for name, size in mesh.shape.items()) or "single"
        raise ValueError(
            f"mesh {axes} takes {mesh.size} of {len(jax.devices())} devices, and "
            f"{', '.join(map(describe, idle))} would have none. Use a mesh of all devices "
            f"(--strategy, --mesh), or start {len(having)} process(es)."
        )


def node_notes(mesh: Mesh) -> tuple[str, ...]:
    """Return what a user has to know about a mesh over several nodes; () for one node.

    All processes have to call it.
    """
    if process_count() == 1:
        return ()
    node = nodes()
    at = np.vectorize(lambda d: node[d.process_index], otypes=[int])(mesh.devices)
    count = len(np.unique(at))
    if count == 1:
        return ()
    crossing = [
        name for axis, name in enumerate(mesh.axis_names)
        if mesh.devices.shape[axis] > 1 and np.any(np.diff(at, axis=axis))
    ]  # fmt: skip
    inside = [n for n, size in mesh.shape.items() if size > 1 and n not in crossing]
    said = f"mesh over {count} nodes: {_axes(crossing)} cross{'es' * (len(crossing) == 1)} them"
    notes = [said + (f", {_axes(inside)} stay{'s' * (len(inside) == 1)} inside" if inside else "")]
    if near := [name for name in crossing if name in _NEAR_AXES]:
        notes.append(
            f"warning: {_axes(near)} communicates in every layer, and over the network between "
            "nodes. Put it last in --mesh with at most a node's devices, such as stage=2,tensor=8."
        )
    return tuple(notes)


def _axes(names: list[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
