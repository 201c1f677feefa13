"""Writing a report: every file or none."""

import os
import tempfile
from pathlib import Path


def check_writable(folder: str | Path) -> None:
    """Raises ValueError unless files can be made in `folder`; makes nothing."""
    at = Path(folder).absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    if not at.is_dir():
        raise ValueError(f"--out={folder}: {at} is not a folder. Give one that can be written.")
    if not os.access(at, os.W_OK | os.X_OK):
        raise ValueError(f"--out={folder}: {at} cannot be written. Give a folder that can.")


def write_all(folder: str | Path, files: dict[str, str]) -> tuple[Path, ...]:
    """Writes all files beside their places first, then moves them there.

    Returns:
      Their paths.
    """
    staged: list[tuple[str, Path]] = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            descriptor, path = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            staged.append((path, Path(folder) / name))
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                handle.write(text)
        for path, target in staged:
            os.chmod(path, 0o644)
            os.replace(path, target)
    except OSError as error:
        for path, _ in staged:
            Path(path).unlink(missing_ok=True)
        raise ValueError(f"--out={folder}: {error.strerror}. Nothing was written.") from None
    return tuple(target for _, target in staged)
