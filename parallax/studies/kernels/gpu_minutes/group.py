"""Run one group of the plan in its own process, appending flushed lines to the record.

python -m parallax.studies.kernels.gpu_minutes.group NAME --record=FILE --until=TIME [--rehearse]
"""

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parallax.studies.kernels.gpu_minutes.bench import Bench, on_gpu, rehearsal
from parallax.studies.kernels.gpu_minutes.plan import Group, group_named
from parallax.studies.kernels.gpu_minutes.work import do

# Time to leave before the process is killed.
_MARGIN_S = 1.0


def append(record: Path, line: dict[str, Any]) -> None:
    """Append a line that survives the death of this process."""
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def end_of_item(group: str, item: str, status: str, **more: Any) -> dict[str, Any]:
    """Return the line that ends an item."""
    return {"kind": "item", "group": group, "item": item, "status": status, **more}


def run_group(
    group: Group, record: Path, until: float, bench: Bench, clock: Callable[[], float] = time.time
) -> None:
    """Run the items in order, as many as there is time for.

    Args:
      until: time at which the process will be killed, by `clock`.
    """
    for item in group.items:
        start = clock()
        if start + item.seconds + _MARGIN_S > until:
            append(record, end_of_item(group.name, item.name, "not reached"))
            continue
        try:
            for line in do(item, bench):
                append(record, line)
        # The next item may still work.
        except Exception as problem:
            traceback.print_exc()
            status, why = "failed", {"why": " ".join(str(problem).split())[:300]}
        else:
            status, why = "done", {}
        seconds = round(clock() - start, 2)
        append(record, end_of_item(group.name, item.name, status, seconds=seconds, **why))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    bench = rehearsal() if options.rehearse else on_gpu()
    run_group(group_named(options.name), options.record, options.until, bench)


if __name__ == "__main__":
    main()
