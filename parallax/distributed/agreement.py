"""Agreement of all processes: the same facts, the same outcome, the same moment.

Texts travel through the key-value store of JAX's coordination service, so nothing here needs
devices. Every process has to call the same functions in the same order; with one process they
return at once. A process that dies meanwhile is named by `watch`.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from parallax.distributed.processes import client, describe, hosts, process_count, process_index

# What a user or a machine's state causes, not a fault of the program.
USER_ERRORS = (ValueError, NotImplementedError, ModuleNotFoundError, OSError)
# What Gloo and the coordination service say of a closed connection, in texts of other errors.
_LOST_PEER = ("Gloo", "UNAVAILABLE", "Connection closed by peer")
_SLICE_S, _SAY_AFTER_S = 2.0, 10.0
_numbers = itertools.count()


def gather(what: str, text: str) -> tuple[str, ...]:
    """Return the text of every process, in order of processes.

    Args:
      what: what is gathered, in a few words, the same on all processes; it is said on standard
        error when a process lets the others wait for over 10 s.
      text: this process's text.

    Raises:
      RuntimeError: another process is at another `what`: a fault of the program.
    """
    if process_count() == 1:
        return (text,)
    hosts()
    number = next(_numbers)
    key = f"parallax/gather/{number}"
    if number >= 2:  # all have read it: they have set the one after
        client().key_value_delete(f"parallax/gather/{number - 2}/{process_index()}")
    client().key_value_set(f"{key}/{process_index()}", f"{what}\n{text}")
    texts = []
    for process in range(process_count()):
        at, _, found = _wait_for(f"{key}/{process}", what, process).partition("\n")
        if at != what:
            raise RuntimeError(
                f"{describe(process)} is at {at!r}, {describe(process_index())} at {what!r}: all "
                "processes have to run the same program."
            )
        texts.append(found)
    return tuple(texts)


def from_first(what: str, text: str) -> str:
    """Return process 0's text, on every process; `what` is as in `gather`."""
    return gather(what, text if process_index() == 0 else "")[0]


def wait_for_all(what: str) -> None:
    """Wait until every process is here; `what` is as in `gather`."""
    gather(what, "")


def together[T](what: str, act: Callable[[], T]) -> T:
    """Run `act` on every process, and fail on all if it fails on one.

    Args:
      what: as in `gather`.
      act: what to run; collectives in it have to be reached by all processes or by none.

    Raises:
      ValueError: an error of a user or of a machine's state, on any process; the message names the
        first process that had it. A process raises its own error if all have the same.
    """
    own: Exception | None = None
    result: Any = None
    try:
        result = act()
    except USER_ERRORS as error:
        if process_count() == 1:
            raise
        own = error
    said = gather(what, "" if own is None else (_one_line(own) or type(own).__name__))
    failed = [process for process, error in enumerate(said) if error]
    if not failed:
        return result
    if own is not None and len(set(said)) == 1:
        raise own
    raise ValueError(f"{describe(failed[0])}: {said[failed[0]]}") from own


def raise_lost_peer(error: BaseException) -> None:
    """Raise what JAX's runtime said, if an error of several processes comes from a lost one.

    For code that explains a library's errors: this one is not the library's, and `watch` names the
    process. It returns for every other error, and with one process.
    """
    import jax

    if process_count() == 1:
        return
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, jax.errors.JaxRuntimeError):
            raise seen
        seen = seen.__cause__ or seen.__context__
    if any(word in str(error) for word in _LOST_PEER):
        raise jax.errors.JaxRuntimeError(str(error)) from error


def agree(what: str, facts: Mapping[str, Any]) -> None:
    """Raise ValueError, on every process, if facts differ between processes.

    Args:
      what: as in `gather`.
      facts: JSON values by name; values in nested objects are named with dots.
    """
    said = gather(what, json.dumps(_flat(facts), default=str))
    first, different = json.loads(said[0]), []
    for process, text in enumerate(said[1:], 1):
        other = json.loads(text)
        for name in sorted({*first, *other}):
            if first.get(name) != other.get(name):
                different.append(
                    f"{name} is {_shown(other, name)} on {describe(process)} and "
                    f"{_shown(first, name)} on {describe(0)}"
                )
    if different:
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise ValueError(
            f"{what}: the processes differ: {'; '.join(different[:3])}{more}. Start all with the "
            "same command, files and versions."
        )


def _flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _shown(facts: Mapping[str, Any], name: str) -> str:
    return json.dumps(facts[name])[:120] if name in facts else "missing"


def _wait_for(key: str, what: str, process: int) -> str:
    """Wait for a process to set a key, for as long as it lives."""
    start, said = time.monotonic(), _SAY_AFTER_S
    while True:
        try:
            return client().blocking_key_value_get(key, int(1000 * _SLICE_S))
        except Exception as error:  # JAX's errors have no public type
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        waited = time.monotonic() - start
        if waited >= said:
            said *= 2
            print(
                f"waiting for {describe(process)}: {what}, for {waited:.0f} s",
                file=sys.stderr,
                flush=True,
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
