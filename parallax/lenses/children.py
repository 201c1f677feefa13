"""Several child processes at a time: jobs beside each other, and cases dealt out to children."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

from parallax.lenses.child import Progress, end_children, run_in_child

# A program for a whole cluster takes one core and up to several gigabytes to compile.
AT_ONCE = 2


def run_beside(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run jobs `AT_ONCE` at a time, in threads; return their results in order.

    The first that fails, or Ctrl-C, ends the children of all.
    """
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for done in as_completed(futures):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_children()
            raise
    return [future.result() for future in futures]


def each_in_children(
    function: Callable[..., Any],
    cases: Sequence[Any],
    *args: Any,
    environment: Mapping[str, str],
    on_progress: Progress = lambda line: None,
) -> list[Any]:
    """Run `function(case, *args, on_progress=...)` for every case, in `AT_ONCE` fresh processes.

    Args:
      function, args, environment: as in `run_in_child`.
      cases: dealt out in turn, so that neighbours are done side by side.
      on_progress: called with "number of all: line" for each line the function reports.

    Returns:
      The results, in the order of the cases.

    Raises:
      What `run_in_child` raises, as soon as one case fails.
    """
    numbered = list(enumerate(cases, 1))
    parts = [numbered[first::AT_ONCE] for first in range(min(AT_ONCE, len(numbered)))]
    found = run_beside(
        [
            partial(
                run_in_child, _each, function, part, len(numbered), args,
                environment=environment, on_progress=on_progress,
            )
            for part in parts
        ]
    )  # fmt: skip
    results = {
        number: result
        for part, done in zip(parts, found, strict=True)
        for (number, _), result in zip(part, done, strict=True)
    }
    return [results[number] for number, _ in numbered]


def _each(
    function: Callable[..., Any], part: Sequence[tuple[int, Any]], total: int,
    args: tuple[Any, ...], *, on_progress: Progress,
) -> list[Any]:  # fmt: skip
    """In a child: the results of one part of the cases."""

    def report(number: int, line: str) -> None:
        on_progress(f"{number} of {total}: {line}")

    return [function(case, *args, on_progress=partial(report, number)) for number, case in part]
