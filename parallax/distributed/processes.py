"""The processes of a run: how many, which one this is, their hosts; JAX's key-value store.

Without `jax.distributed` there is one process, and nothing here starts JAX.
"""

import socket
from typing import Any

_HOST_KEY = "parallax/host"
_HOST_TIMEOUT_MS = 600_000
_hosts: dict[int, str] = {}


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


def describe(process: int) -> str:
    """Return the number of a process and its host, once `hosts` has run."""
    if client() is None:
        return f"process {process}"
    return f"process {process} ({_hosts.get(process, 'host unknown')})"


def hosts() -> tuple[str, ...]:
    """Return the host name of every process, in order; all processes have to call it.

    Two processes are on one node if their names are equal.
    """
    if client() is None:
        return (socket.gethostname(),)
    if not _hosts:
        client().key_value_set(f"{_HOST_KEY}/{process_index()}", socket.gethostname())
        for k in range(process_count()):
            _hosts[k] = client().blocking_key_value_get(f"{_HOST_KEY}/{k}", _HOST_TIMEOUT_MS)
    return tuple(_hosts[k] for k in range(process_count()))


def _state() -> Any:
    from jax._src import distributed

    return distributed.global_state
