"""Writing report files to disk: all of them or none."""

import errno
import os
import tempfile
from pathlib import Path


def check_writable(folder: str | Path) -> None:
    """Check, before the work starts, that a folder can be written to; leave nothing behind.

    Raises:
      ValueError: the folder cannot be created or written to.
    """
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


def save_files(folder: str | Path, files: dict[str, str]) -> tuple[Path, ...]:
    """Write every file to a temporary name beside its place, then rename them all.

    Args:
      folder: created if it does not exist.
      files: name -> text.

    Raises:
      ValueError: the folder cannot be written to; nothing is left behind.
    """
    check_writable(folder)
    folder = Path(folder)
    waiting: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
            waiting.append((Path(temporary), folder / name))
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            Path(temporary).chmod(0o666 & ~_umask())
        for temporary, final in waiting:
            temporary.replace(final)
    except OSError as error:
        raise ValueError(
            f"--out={folder}: {error.strerror}. Nothing was written; free space or give "
            "another folder."
        ) from None
    finally:
        for temporary, _ in waiting:
            temporary.unlink(missing_ok=True)
    return tuple(final for _, final in waiting)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
