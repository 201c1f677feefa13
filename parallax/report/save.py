"""Report files on disk: all of them or none."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path


def check_writable(folder: str | Path) -> Path:
    """The folder, made if it is not there; to be called before the work starts.

    Raises:
      ValueError: it cannot be made or written to.
    """
    folder = Path(folder)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".report-"):
            pass
    except OSError as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        why = "not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(
            f"output folder {folder}: {why}. Give a folder that can be written to."
        ) from None
    return folder


def save_files(folder: str | Path, files: dict[str, str]) -> tuple[Path, ...]:
    """Writes every file beside its place first, then renames them all.

    Args:
      folder: made if it is not there.
      files: name -> text.

    Raises:
      ValueError: it cannot be written to; nothing is left behind.
    """
    folder = check_writable(folder)
    waiting: list[tuple[Path, Path]] = []
    try:
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
            f"output folder {folder}: {error.strerror}. Nothing was written; free space or give "
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
