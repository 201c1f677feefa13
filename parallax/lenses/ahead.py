"""Programs compiled ahead: one is traced and another compiled while an earlier one runs.

Tracing is Python and takes one core; XLA compiles beside it.
"""

import contextvars
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from jax.stages import Compiled, Lowered


def compiled_ahead(lower: Sequence[Callable[[], Lowered]]) -> Generator[Compiled]:
    """Yield the compiled programs in order; later ones are traced and compiled meanwhile.

    Args:
      lower: functions that trace one program each. They run in a thread, in this one's context.

    Raises:
      Whatever a function raises, when its program is due; later ones are then not compiled.
    """

    def compile_it(lowered: Future[Lowered]) -> Compiled:
        return lowered.result().compile()

    tracing, compiling = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    try:
        due = [tracing.submit(contextvars.copy_context().run, function) for function in lower]
        programs = [compiling.submit(compile_it, lowered) for lowered in due]
        del due
        while programs:
            yield programs.pop(0).result()
    finally:
        tracing.shutdown(cancel_futures=True)
        compiling.shutdown(cancel_futures=True)
