"""Programs whose first call waits for the slowest process's compiler.

The devices of a program's collectives meet at its first call, and give up when one of them comes
30 s after another.
"""

from collections.abc import Callable
from typing import Any

from parallax.distributed.agreement import wait_for_all
from parallax.distributed.processes import process_count


def called_together(what: str, jitted: Any) -> Callable[..., Any]:
    """Return a jitted function that several processes first call once all have compiled it.

    Args:
      what: what the program does, as in `gather`.
      jitted: the function; with several processes it is called with arrays of one shape.
    """
    if process_count() == 1:
        return jitted
    compiled: Any = None

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = jitted.lower(*arguments).compile()
            wait_for_all(what)
        return compiled(*arguments)

    return call
