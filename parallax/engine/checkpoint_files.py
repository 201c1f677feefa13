"""The files of a run's checkpoints: which steps are complete, their checksums, their removal.

`checkpoints/STEP` appears by a rename once it is complete and disappears by a rename before it is
deleted, so a process killed at any moment leaves no folder that looks complete and is not.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from parallax.distributed.processes import process_count, process_index

_MARK = "_CHECKPOINT_METADATA"  # orbax writes it last
_REMOVED = ".removed-"


class BrokenFilesError(ValueError):
    """The error for a checkpoint's file that is missing or not what was saved."""


def where(folder: Path, step: int) -> Path:
    """Return the folder of a step's arrays."""
    return folder / "checkpoints" / str(step)


def complete_steps(folder: Path) -> list[int]:
    """Return the steps of complete checkpoints in a run's folder, oldest first."""
    inside = folder / "checkpoints"
    if not inside.is_dir():
        return []
    names = [p.name for p in inside.iterdir() if p.name.isdigit()]
    return sorted(int(n) for n in names if (inside / n / _MARK).is_file())


def write_checksums(folder: Path, step: int) -> None:
    """Write the checksums of a complete checkpoint; a file appears when it is whole."""
    target = folder / "checksums" / f"{step}.json"
    target.parent.mkdir(exist_ok=True)
    waiting = target.with_name(f".{step}.json")
    try:
        sums = {name: _checksum(path) for name, path in _files(where(folder, step)).items()}
        waiting.write_text(json.dumps(sums, indent=1), encoding="utf-8")
        waiting.rename(target)
    except OSError:
        waiting.unlink(missing_ok=True)
        raise


def check_share(folder: Path, step: int) -> None:
    """Check this process's share of a checkpoint's files; all processes together check all.

    A checkpoint whose process was killed before it wrote checksums passes: it is complete.

    Raises:
      BrokenFilesError: a file is missing or differs from what was saved.
    """
    path = folder / "checksums" / f"{step}.json"
    if not path.is_file():
        return
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BrokenFilesError(f"{path}: not JSON: {error}") from None
    files = _files(where(folder, step))
    if missing := sorted(set(expected) - set(files)):
        raise BrokenFilesError(f"file {missing[0]} is missing")
    for name in _share(files):
        if _checksum(files[name]) != expected.get(name):
            raise BrokenFilesError(f"file {name} differs from what was saved")


def keep_newest(folder: Path, keep: int) -> None:
    """Remove all but the newest complete checkpoints."""
    steps = complete_steps(folder)
    for step in steps[:-keep]:
        remove_step(folder, step)
    for path in (folder / "checksums").glob("*.json"):
        if path.stem.isdigit() and int(path.stem) not in steps[-keep:]:
            path.unlink()


def remove_step(folder: str | Path, step: int) -> None:
    """Delete one checkpoint, for example a broken newest one."""
    folder = Path(folder)
    (folder / "checksums" / f"{step}.json").unlink(missing_ok=True)
    path = where(folder, step)
    if path.is_dir():
        gone = path.with_name(f"{_REMOVED}{step}")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed or failed save or removal left; only for a run that owns the folder."""
    inside = folder / "checkpoints"
    inside.mkdir(parents=True, exist_ok=True)
    for path in inside.iterdir():
        if path.name.startswith(_REMOVED) or ".orbax-checkpoint-tmp" in path.name:
            shutil.rmtree(path, ignore_errors=True)
    for path in (folder / "checksums").glob(".*.json"):
        path.unlink()


def _files(folder: Path) -> dict[str, Path]:
    """Return every file by its path inside the folder."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p for p in paths}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _share(files: Mapping[str, Path]) -> list[str]:
    """Return the files that this process checks: all have about as many bytes to read."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    loads = [0] * process_count()
    mine = []
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        least = loads.index(min(loads))
        loads[least] += sizes[name]
        if least == process_index():
            mine.append(name)
    return mine
