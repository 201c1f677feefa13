"""A folder that appears when it is complete, and whether one can be made."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from flax import nnx


def check_can_be_made(folder: str | Path, what: str) -> None:
    """Check, before the work starts, that a folder can be made, or written if it is there.

    Args:
      folder: the folder.
      what: what it is, for the error.

    Raises:
      ValueError: it cannot.
    """
    place = Path(folder).absolute()
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        inside = "" if place == Path(folder).absolute() else f" ({place})"
        raise ValueError(
            f"{what} {folder}: {error.strerror}{inside}. Give a folder that can be written."
        ) from None


def check_new(folder: str | Path) -> None:
    """Raise ValueError if a folder exists, or cannot be made."""
    if Path(folder).exists():
        raise ValueError(f"{folder}: exists already. Give a folder that does not exist.")
    check_can_be_made(folder, "the folder")


@contextlib.contextmanager
def new_folder(folder: str | Path, params: nnx.State) -> Iterator[Path]:
    """Yield a folder to write to, which is renamed to `folder` once it is complete.

    Raises:
      ValueError: the folder exists or cannot be written, as on a full disk, or other processes hold
        part of the parameters. Nothing is left then.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    check_new(folder)
    if not all(x.is_fully_addressable for x in jax.tree.leaves(params)):
        raise ValueError(
            f"{folder}: other processes hold part of the parameters. Save a checkpoint there, and "
            "restore it in one process to save this folder."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(
            f"{folder}: {why}. Nothing was made there: free space, or give another folder."
        ) from error
