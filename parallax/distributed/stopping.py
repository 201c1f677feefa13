"""The step after which all processes stop, once one of them was asked to."""

import os
import signal
from dataclasses import dataclass

from parallax.distributed import watch
from parallax.distributed.agreement import gather
from parallax.distributed.processes import process_count, takes_notice


@dataclass
class _Notice:
    """JAX's preemption notice, which it gives once in the life of a process.

    Attributes:
      calls: how often JAX was asked for the step to stop at. It is told this number: steps of a
        resumed run begin above 0, and a notice before the first call fixes the number 1.
      given: whether this process has sent the notice itself.
      used: whether all have stopped by it.
    """

    calls: int = 0
    given: bool = False
    used: bool = False


_notice = _Notice()


def stop_at(step: int, asked: bool) -> bool:
    """Whether all processes stop after this step; call it once a step, on all.

    Args:
      step: the number of steps done.
      asked: whether this process was asked to stop, by Ctrl-C or a callback. SIGTERM reaches JAX
        itself, which then finds a step that no process has passed; another request takes the same
        way.

    With one process it is `asked`.

    Cost: nothing is sent, except after a first stop and without JAX's notice: then a text from each
      process in every step.
    """
    if process_count() == 1:
        return asked
    watch.at_step(step)
    if _notice.used or not takes_notice():
        return any(gather("whether to stop", "stop" if asked else ""))
    from jax.experimental import multihost_utils

    _notice.calls += 1
    if asked and not _notice.given:
        _notice.given = True
        os.kill(os.getpid(), signal.SIGTERM)
    _notice.used = multihost_utils.reached_preemption_sync_point(_notice.calls)
    return _notice.used
