"""The metrics of a training run: one JSON line per step, and event files for TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path


class Metrics:
    """A writer of `metrics.jsonl` and TensorBoard's event files in a run's folder.

    Args:
      folder: the run's folder.
      first_step: steps done before; lines that an earlier run wrote of later steps are removed.
    """

    def __init__(self, folder: str | Path, first_step: int = 0):
        from tensorboardX import SummaryWriter

        self._path = Path(folder) / "metrics.jsonl"
        _cut_off(self._path, first_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the metrics of one step, by name."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close all files."""
        self._file.close()
        self._events.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _cut_off(path: Path, last: int) -> None:
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= last]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
