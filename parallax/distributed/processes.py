"""The processes of a run: how many, which one this is, their hosts; JAX's key-value store.

Without `jax.distributed` there is one process, and nothing here starts JAX.
"""

import socket
from pathlib import Path
from typing import Any

_HOST_KEY = "parallax/host"
_HOST_TIMEOUT_MS = 600_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_hosts: dict[int, str] = {}
_boots: dict[int, str] = {}


def client() -> Any:
    """Return the client of JAX's coordination service; None if there is one process.

    JAX has no public name for it; this is the one place that knows the private one.
    """
    return _state().client


def process_count() -> int:
    """Return the number of processes; 1 without `jax.distributed`."""
    return 1 if client() is None else _state().num_processes


def process_index() -> int:
    """Return the number of this process, from 0."""
    return 0 if client() is None else _state().process_id


def is_first() -> bool:
    """Whether this is process 0, which prints and writes reports; True if it is alone."""
    return process_index() == 0


def coordinator_address() -> str:
    """Return HOST:PORT of the coordination service; "" if there is one process."""
    return "" if client() is None else _state().coordinator_address


def takes_notice() -> bool:
    """Whether SIGTERM to a process is a notice to all, by JAX's preemption service."""
    return client() is not None and _state().preemption_sync_manager is not None


def describe(process: int) -> str:
    """Return the number of a process and its host, once `hosts` has run."""
    if client() is None:
        return f"process {process}"
    return f"process {process} ({_hosts.get(process, 'host unknown')})"


def hosts() -> tuple[str, ...]:
    """Return the host name of every process, in order; all processes have to call it."""
    if client() is None:
        return (socket.gethostname(),)
    if not _hosts:
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else ""
        own = f"{socket.gethostname()}|{boot}"
        client().key_value_set(f"{_HOST_KEY}/{process_index()}", own)
        for k in range(process_count()):
            told = client().blocking_key_value_get(f"{_HOST_KEY}/{k}", _HOST_TIMEOUT_MS)
            _hosts[k], _, _boots[k] = told.partition("|")
    return tuple(_hosts[k] for k in range(process_count()))


def nodes() -> tuple[int, ...]:
    """Return the number of every process's node, in the order of their first processes.

    All processes have to call it. Two are on one node if the names of their hosts are equal, and
    the starts of their kernels: containers on different machines may have one name.
    """
    names = [(name, _boots.get(k, "")) for k, name in enumerate(hosts())]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return tuple(numbers[name] for name in names)


def _state() -> Any:
    from jax._src import distributed

    return distributed.global_state
