"""TensorBoard's event file of a run, written by the thread that has the figures.

tensorboardX's own writer has a thread, which a full disk ends: the next figures then wait forever.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FLUSH_EVERY_S = 30.0


class Events:
    """An event file in a folder.

    Args:
      folder: the run's folder.
      first_step: TensorBoard hides what earlier files say of this step and later ones.

    Raises:
      OSError: it cannot be written; so do `write` and `close`.
    """

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        names: Any = vars(event_pb2)  # made at run time
        self._event = names["Event"]
        start = names["SessionLog"](status=names["SessionLog"].START)
        self._file = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        self._add(step=first_step, session_log=start)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of one step, by name."""
        from tensorboardX.summary import scalar

        for name, value in figures.items():
            self._add(step=step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_EVERY_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def _add(self, **values: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), **values))
