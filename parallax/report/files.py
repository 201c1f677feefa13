"""Writing a report: every file or none."""

import os
import tempfile
from pathlib import Path


def check_writable(folder: str | Path) -> None:
    """Raises ValueError unless files can be made in `folder`; leaves nothing behind."""
    made: list[Path] = []
    try:
        for parent in reversed([Path(folder), *Path(folder).parents]):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"--out={folder}: {error.strerror}. Give a folder that can be written."
        ) from None
    finally:
        for parent in reversed(made):
            parent.rmdir()


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
