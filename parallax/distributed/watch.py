"""The watch over the processes of a run: one that dies, stops or fails is named, and all leave.

Every process beats through the key-value store of JAX's coordination service, which process 0
serves. Process 0 judges the beats and posts a verdict; the others read it, and judge process 0 by
its answers. A process that leaves does so at once (`os._exit`): its main thread may wait in a
collective that never ends.
"""

import ctypes
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from parallax.distributed.processes import (
    client,
    coordinator_address,
    describe,
    process_count,
    process_index,
)

# Exit status of a process that leaves because another one is lost.
LOST = 3
_BEAT_S = 1.0
# Without a beat for so long a process counts as lost, sooner if a collective has failed already.
_SILENT_S, _SILENT_AFTER_ERROR_S = 18.0, 10.0
_READ_VERDICT_S, _OWN_ERROR_FIRST_S = 5.0, 1.5
_LAGGING_S = 25.0
_FAILURES = 3  # calls to process 0 in a row
_SAY_WITHIN_S = 3.0
_BEAT, _LEFT, _SEEN = "parallax/beat", "parallax/left", "parallax/seen"
_VERDICT = "parallax/verdict"
_NO_ANSWER = "it does not answer (killed, or its network is down)"


@dataclass(frozen=True)
class Verdict:
    """Why all processes leave: one line, and the exit status."""

    line: str
    status: int


class _Watch:
    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.step = 0
        self.failing = False
        self.ended = threading.Event()
        self.threads: list[threading.Thread] = []
        self.answered = time.monotonic()
        self.lock = threading.Lock()


_watch: _Watch | None = None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def start(say: Callable[[str], None] = _say) -> None:
    """Start the watch of this process, unless there is one process or it has started.

    Args:
      say: called with the line that names a lost or failed process, before this one leaves.
    """
    global _watch
    if process_count() == 1 or _watch is not None:
        return
    _watch = _Watch(say)
    for run in (_beat, _judge_first) if process_index() else (_beat,):
        thread = threading.Thread(target=run, args=(_watch,), daemon=True)
        _watch.threads.append(thread)
        thread.start()
    if process_index():
        _name_first_on_abort()


def end() -> None:
    """End the watch: all processes are done, so that silence means nothing any more."""
    if _watch is not None:
        _watch.ended.set()
        for thread in _watch.threads:
            thread.join(2 * _BEAT_S)


def at_step(step: int) -> None:
    """Tell the step that this process has reached; one that others wait for is then named."""
    if _watch is not None:
        _watch.step = step


def fail(line: str, status: int) -> None:
    """Leave, and have all other processes leave, because of an error of this one.

    Args:
      line: the error, one line; the others say it with this process's number and host.
      status: the exit status of all.
    """
    if _watch is not None:
        _watch.failing = True
    _post(Verdict(line, status), blamed=True)
    if process_index():
        time.sleep(_SILENT_S)  # the watch ends this process as soon as it reads the verdict
        _leave(Verdict(line, status))
    _sentence(Verdict(_named(0, line), status), own=True)


def suspect(line: str, status: int) -> None:
    """Wait, after a collective failed, for the lost peer to be named, and leave then.

    Args:
      line, status: as for `fail`.

    Returns:
      Only if every other process is alive: the error is this process's own.
    """
    _post(Verdict(line, status), blamed=False)
    time.sleep(_SILENT_AFTER_ERROR_S + 4 * _BEAT_S)


def _named(process: int, line: str) -> str:
    """Return the line of a process with its name, unless it begins with a process's name."""
    return line if line.startswith("process ") else f"{describe(process)}: {line}"


def _post(error: Verdict, *, blamed: bool) -> None:
    value = json.dumps(asdict(error) | {"blamed": blamed})
    try:
        client().key_value_set(f"{_LEFT}/{process_index()}", value, allow_overwrite=True)
    except Exception:  # JAX's errors have no public type
        _first_is_lost(_NO_ANSWER)


def _beat(watch: _Watch) -> None:
    """Beat, and read what the others or process 0 have to say, until the run ends."""
    number, failures, peers = 0, 0, _Peers()
    while not watch.ended.is_set():
        number += 1
        woke = time.monotonic()
        try:
            beat = json.dumps([number, watch.step])
            client().key_value_set(f"{_BEAT}/{process_index()}", beat, allow_overwrite=True)
            verdict = peers.judge(watch) if process_index() == 0 else _read_verdict()
        except Exception:  # JAX's errors have no public type
            failures += 1
            if watch.ended.is_set():
                return
            if failures > _FAILURES or not _is_reached(coordinator_address()):
                _first_is_lost(_NO_ANSWER)
            watch.ended.wait(_BEAT_S)
            continue
        failures = 0
        watch.answered = time.monotonic()
        if verdict is not None and not watch.ended.is_set():
            if process_index() == 0:
                _sentence(verdict)
            client().key_value_set(f"{_SEEN}/{process_index()}", "", allow_overwrite=True)
            _leave(verdict)
        watch.ended.wait(_BEAT_S)
        if time.monotonic() - woke > 5 * _BEAT_S:
            peers = _Peers()  # this process was stopped or starved itself: all start anew


class _Peers:
    """The newest beats of all processes, as process 0 saw them."""

    def __init__(self):
        self.beats: dict[int, tuple[str, float]] = {}
        self.blamed_since: float | None = None
        self.behind: dict[int, tuple[int, float]] = {}

    def judge(self, watch: _Watch) -> Verdict | None:
        """Return why all have to leave; None while all is well."""
        now = time.monotonic()
        beats = _read_all(_BEAT)
        for process, beat in beats.items():
            if self.beats.get(process, ("",))[0] != beat:
                self.beats[process] = beat, now
        left = {k: json.loads(text) for k, text in _read_all(_LEFT).items()}
        blamed = [p for p, error in sorted(left.items()) if error["blamed"] and p]
        if blamed:
            self.blamed_since = self.blamed_since or now
            # An error that all processes have is process 0's to say.
            if now - self.blamed_since > _OWN_ERROR_FIRST_S and not watch.failing:
                error = left[blamed[0]]
                return Verdict(_named(blamed[0], error["line"]), error["status"])
            return None
        silent_s = _SILENT_AFTER_ERROR_S if left else _SILENT_S
        silent = [p for p, (_, at) in sorted(self.beats.items()) if now - at > silent_s]
        if silent:
            are = "is" if len(silent) == 1 else "are"
            names = ", ".join(map(describe, silent))
            return Verdict(
                f"{names} {are} lost: no sign of life for {silent_s:.0f} s (killed, stopped, or "
                "its network is down). The same command goes on from the last checkpoint, on "
                "fewer processes too.",
                LOST,
            )
        self._say_who_lags(watch, now)
        return None

    def _say_who_lags(self, watch: _Watch, now: float) -> None:
        steps = {p: json.loads(beat)[1] for p, (beat, _) in self.beats.items()}
        most = max(steps.values(), default=0)
        for process, step in sorted(steps.items()):
            if step == most or self.behind.get(process, (step,))[0] != step:
                self.behind.pop(process, None)
            if step == most:
                continue
            _, since = self.behind.setdefault(process, (step, now))
            if now - since > _LAGGING_S:
                self.behind[process] = step, math.inf  # said once
                watch.say(
                    f"{describe(process)} has been at step {step} for {now - since:.0f} s, and the "
                    f"others wait at step {most}"
                )


def _judge_first(watch: _Watch) -> None:
    """Leave once process 0 has not answered for too long: then the beat itself waits."""
    while not watch.ended.is_set():
        before = time.monotonic()
        watch.ended.wait(_BEAT_S)
        now = time.monotonic()
        if now - before > 5 * _BEAT_S:
            watch.answered = now  # this process was stopped or starved itself
        if now - watch.answered > _SILENT_S and not watch.ended.is_set():
            _first_is_lost(f"no answer for {_SILENT_S:.0f} s (stopped, or its network is down)")


def _first_is_lost(reason: str) -> None:
    """Leave because process 0 does not serve the others any more."""
    line = f"{describe(0)} is lost: {reason}. The same command goes on from the last checkpoint."
    _leave(Verdict(line, LOST))


def _name_first_on_abort() -> None:
    """Name process 0 when JAX ends this process because process 0 is gone.

    JAX then calls abort() in a thread of its own, without a Python exception, and takes no callback
    from Python. The handler runs in that thread; where process 0 still serves, the abort had
    another cause and goes on.
    """

    def handle(_: int) -> None:
        running = _watch is not None and not _watch.ended.is_set()
        if running and not _is_reached(coordinator_address()):
            _first_is_lost("its connection closed (killed, or its host went down)")
        libc.signal(signal.SIGABRT, ctypes.c_void_p(0))  # SIG_DFL: abort() raises it again

    global _abort_handler
    libc = ctypes.CDLL(None)
    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    libc.signal(signal.SIGABRT, _abort_handler)


_abort_handler: Any = None  # C holds no reference to it


def _is_reached(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _BEAT_S):
            return True
    except OSError:
        return False


def _sentence(verdict: Verdict, *, own: bool = False) -> None:
    """Post the verdict, as process 0, and leave once the others have read it."""
    text = json.dumps(asdict(verdict))
    client().key_value_set(_VERDICT, text, allow_overwrite=True)
    end_at = time.monotonic() + _READ_VERDICT_S
    while time.monotonic() < end_at and len(_read_all(_SEEN)) < process_count() - 1:
        time.sleep(0.1)
    _leave(verdict, silently=own)


def _read_verdict() -> Verdict | None:
    try:
        return Verdict(**json.loads(client().key_value_try_get(_VERDICT)))
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _read_all(folder: str) -> dict[int, str]:
    found = client().key_value_dir_get(folder)
    return {int(key.rpartition("/")[2]): value for key, value in found}


def _leave(verdict: Verdict, *, silently: bool = False) -> None:
    # What is said may wait for a stream that another thread holds, or for a file system.
    timer = threading.Timer(_SAY_WITHIN_S, os._exit, (verdict.status,))
    timer.daemon = True
    timer.start()
    watch = _watch or _Watch(_say)
    with watch.lock:  # two threads may want to; the second waits for the process to end
        if not silently:
            watch.say(verdict.line)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(verdict.status)
