"""The step after which all processes stop, once one of them was asked to."""

import os
import signal

from parallax.distributed import watch
from parallax.distributed.processes import process_count

_asked = False


def stop_at(step: int, asked: bool) -> bool:
    """Whether all processes stop after this step; call it once a step, on all.

    Args:
      step: the number of steps done.
      asked: whether this process was asked to stop, by Ctrl-C or a callback. SIGTERM reaches JAX
        itself, which then finds a step that no process has passed; another request takes the same
        way.

    With one process it is `asked`.
    """
    if process_count() == 1:
        return asked
    from jax.experimental import multihost_utils

    global _asked
    if asked and not _asked:
        _asked = True
        os.kill(os.getpid(), signal.SIGTERM)
    watch.at_step(step)
    return multihost_utils.reached_preemption_sync_point(step)
