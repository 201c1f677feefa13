"""The start and end of a run of several processes on JAX's own runtime."""

import atexit
import os
import platform
import socket
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any

from parallax.distributed import schedulers, watch
from parallax.distributed.agreement import agree, wait_for_all
from parallax.distributed.processes import (
    client,
    coordinator_address,
    describe,
    hosts,
    nodes,
    process_count,
    process_index,
)

START_TIMEOUT_S = 300
_SAY_EVERY_S = 15.0
# JAX's own watch is the second one; its message names nobody.
_HEARTBEAT_S = 60
_FOREVER_S = 7 * 24 * 3600
# The CPU's collectives give up on a slow process after 30 s; `watch` tells a slow one from a lost.
_CPU_FLAGS = (
    "--xla_cpu_collective_timeout_seconds=3600",
    "--xla_cpu_collective_call_terminate_timeout_seconds=3600",
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=600",
)


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_s: int = START_TIMEOUT_S,
    save_on_sigterm: bool = True,
    say: Callable[[str], None] | None = None,
) -> None:
    """Join the other processes of this run; call it on all of them, before JAX does anything.

    `px.train`, `px.generate` and `Program.measure` then run on the devices of all processes. Inside
    a Slurm step, under Open MPI's mpirun or in a Kubernetes job nothing has to be given. From then
    on a process that is killed, stops or fails is named by all others, which leave within 30 s.

    Args:
      coordinator: HOST:PORT of process 0, a free port that all others reach.
      num_processes: the number of processes.
      process_id: the number of this one, from 0.
      timeout_s: how long to wait for the others, in seconds.
      save_on_sigterm: whether SIGTERM makes training save and stop, on all processes, instead of
        ending this process; programs that do not train want False.
      say: called with lines for the user; None prints them on standard error.

    Raises:
      ValueError: no scheduler was found and something is not given, the address cannot be had, the
        GPUs cannot be divided, or the processes differ in versions or settings.
      RuntimeError: JAX has started already.
    """
    import jax

    if client() is not None:
        raise RuntimeError("initialize: the processes have been started already. Call it once.")
    say = say or _say
    given = schedulers.settings(coordinator, num_processes, process_id)
    port = schedulers.slurm_port() if given.scheduler == "Slurm" else None
    if given.coordinator is None and port is not None:
        os.environ.setdefault("JAX_COORDINATOR_PORT", str(port))
    if given.process_id == 0 and (given.coordinator is not None or port is not None):
        _check_port(given.coordinator or f"localhost:{os.environ['JAX_COORDINATOR_PORT']}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", save_on_sigterm)
    if jax.config.jax_platforms == "cpu" or not schedulers.visible_gpus():
        have = os.environ.get("XLA_FLAGS", "")
        more = [f for f in _CPU_FLAGS if f.partition("=")[0] not in have]
        os.environ["XLA_FLAGS"] = " ".join(filter(None, (have, *more)))
        _check_own_name()
    waiting = _Waiting(given, timeout_s, say)
    try:
        jax.distributed.initialize(
            given.coordinator,
            given.num_processes,
            given.process_id,
            given.local_devices,
            cluster_detection_method=None if given.is_incomplete else "deactivate",
            initialization_timeout=_FOREVER_S,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )
    finally:
        waiting.stop()
    if process_count() == 1:
        return
    hosts()
    watch.start(say)
    atexit.register(finish)
    sys.excepthook = _failing(sys.excepthook)
    agree("start", _facts())
    say(
        f"{process_count()} processes on {len(set(nodes()))} node(s); this is "
        f"{describe(process_index())}, process 0 is at {coordinator_address()}"
    )


def finish() -> None:
    """Wait for all processes and leave JAX's runtime; runs at the interpreter's end by itself."""
    import jax

    if process_count() == 1:
        return
    wait_for_all("the end of the run")
    watch.end()
    jax.distributed.shutdown()


def _facts() -> dict[str, Any]:
    names = ("parallax-sharding", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "a source folder"
    variables = {
        name: value for name, value in os.environ.items()
        if name.startswith("JAX_") and name not in _LOCAL
    }  # fmt: skip
    given = os.environ.get("XLA_FLAGS", "").split()
    variables["XLA_FLAGS"] = " ".join(f for f in given if not f.startswith("--xla_dump"))
    return {"versions": found, "environment": variables}


# Variables of JAX that are each process's own.
_LOCAL = (
    "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS", "JAX_COORDINATOR_BIND_ADDRESS", "JAX_NUM_CPU_DEVICES",
    "JAX_COMPILATION_CACHE_DIR",
)  # fmt: skip


def _check_port(address: str) -> None:
    """Raise ValueError if process 0 cannot have its own address: JAX would end the process."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_server(("", int(port))):
            pass
    except OSError as error:
        raise ValueError(
            f"coordinator {address}: port {port} cannot be had on process 0's host: "
            f"{error.strerror}. Give a free port, the same on all processes."
        ) from None
    try:
        socket.getaddrinfo(host, int(port))
    except OSError as error:
        raise ValueError(f"coordinator {address}: host {host!r}: {error.strerror}.") from None


def _check_own_name() -> None:
    """Raise ValueError if this host's name has no address, by which Gloo tells it to the others."""
    name = os.uname().nodename
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ValueError(
            f"host {name!r}: its own name has no address ({error.strerror}), and the others need "
            "one. Add it to /etc/hosts or to the name server."
        ) from None


class _Waiting:
    """A thread that says what is awaited, and leaves when it takes too long.

    JAX's own timeout ends the process with a stack trace.
    """

    def __init__(self, given: schedulers.Settings, timeout_s: int, say: Callable[[str], None]):
        self._done = threading.Event()
        where = given.coordinator or f"process 0 ({given.scheduler})"
        count = given.num_processes or "all"
        threading.Thread(target=self._run, args=(where, count, timeout_s, say), daemon=True).start()

    def stop(self) -> None:
        self._done.set()

    def _run(self, where: str, count: Any, timeout_s: float, say: Callable[[str], None]) -> None:
        waited = 0.0
        while not self._done.wait(min(_SAY_EVERY_S, timeout_s - waited)):
            waited += min(_SAY_EVERY_S, timeout_s - waited)
            if waited < timeout_s:
                say(f"waiting for {count} processes to meet at {where}, for {waited:.0f} s")
                continue
            say(
                f"{count} processes did not all meet at {where} within {timeout_s:.0f} s. Check "
                "that each was started, with the same address and another number, and that the "
                "port is reached from all nodes."
            )
            sys.stderr.flush()
            os._exit(watch.LOST)


def _failing(before: Callable[..., Any]) -> Callable[..., Any]:
    """Return an exception hook that also tells the other processes."""

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        leave_after(error, 1, show=lambda error: before(kind, error, trace))

    return hook


def leave_after(error: BaseException, status: int, *, show: Callable[[BaseException], Any]) -> None:
    """Leave, with all other processes, after an error that this process cannot handle.

    Args:
      error: the error; a collective that failed because another process is lost is told by the
        loss alone.
      status: the exit status.
      show: called with the error if it is this process's own.
    """
    import jax

    line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    own_fault = not isinstance(error, jax.errors.JaxRuntimeError)
    if not own_fault and "RESOURCE_EXHAUSTED" not in line:
        watch.suspect(line, status)
    show(error)
    watch.fail(line, status)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
