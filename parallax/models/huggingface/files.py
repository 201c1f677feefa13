"""The tensors in a folder's *.safetensors: names, shapes, and slices read one at a time."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from parallax.models.huggingface.fields import read_fields
from parallax.models.huggingface.tensors import Index

INDEX = "model.safetensors.index.json"
ONE = "model.safetensors"
_MOST = 20  # the most names in an error message
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorFiles:
    """The location of every tensor in a folder.

    Attributes:
      folder: the folder.
      file_of: name of a tensor -> its file.
      shapes: name -> shape.
      dtypes: name -> safetensors' name of the dtype, such as "BF16".
      stored: name -> name in its file, where they differ.
    """

    folder: Path
    file_of: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    stored: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> "TensorFiles":
        """Return the same tensors under other names: name in the files -> name."""

        def under(table):
            return {names.get(name, name): x for name, x in table.items()}

        return replace(
            self, file_of=under(self.file_of), shapes=under(self.shapes),
            dtypes=under(self.dtypes), stored={name: there for there, name in names.items()},
        )  # fmt: skip

    def read(self, name: str, index: Index) -> np.ndarray:
        """Read a slice of one tensor.

        The file is closed again, so that the pages read do not stay in this process's memory.

        Raises:
          ValueError: a file that cannot be read any more.
        """
        from safetensors import SafetensorError, safe_open

        path = self.file_of[name]
        try:
            if self.dtypes[name] == "F8_E4M3":
                return _read_bytes(path, self.stored.get(name, name))[index]
            with safe_open(path, framework="np") as file:
                tensor = file.get_slice(self.stored.get(name, name))
                (first, *rest) = index
                return tensor[index if rest else first]
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: tensor {name} cannot be read: {error}.") from None


def _read_bytes(path: Path, name: str) -> np.ndarray:
    """Return a tensor of 8-bit floats, which the library's reader for NumPy lacks, on disk."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        facts = json.loads(file.read(size))[name]
    start, shape = facts["data_offsets"][0], tuple(facts["shape"])
    data = np.memmap(path, np.uint8, "r", offset=8 + size + start, shape=shape)
    return data.view(ml_dtypes.float8_e4m3fn)


def find_tensors(folder: str | Path) -> TensorFiles:
    """Open all files of a folder and check their headers.

    Raises:
      ValueError: no file, a broken file, a name in two files, or an index that does not match.
    """
    folder = Path(folder)
    return read_headers(folder, _paths(folder))


def read_headers(folder: Path, paths: Iterable[Path]) -> TensorFiles:
    """Open the given files of a folder and check their headers.

    Raises:
      ValueError: a broken file, or a name in two files.
    """
    from safetensors import SafetensorError, safe_open

    file_of: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for path in paths:
        try:
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                headers = {n: (tuple(x.get_shape()), x.get_dtype()) for n, x in slices.items()}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: not a whole safetensors file: {error}. Fetch it again."
            ) from None
        if twice := sorted(set(headers) & set(shapes)):
            raise ValueError(f"{path}: tensor {twice[0]} is also in {file_of[twice[0]].name}.")
        file_of |= dict.fromkeys(headers, path)
        shapes |= {name: shape for name, (shape, _) in headers.items()}
        dtypes |= {name: dtype for name, (_, dtype) in headers.items()}
    return TensorFiles(folder, file_of, shapes, dtypes)


def _paths(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        names = read_fields(index, hint="").inner("weight_map").values.values()
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError(f"{index}: weight_map must hold names of files in this folder.")
        names = sorted(set(names))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder}: {INDEX} names {_some(missing)}, which do not exist. Fetch the rest."
            )
        return [folder / name for name in names]
    if (folder / ONE).is_file():
        return [folder / ONE]
    pickled = sorted(p.name for p in folder.glob("*.bin")) if folder.is_dir() else []
    if pickled:
        raise ValueError(
            f"{folder}: no safetensors, only {pickled[0]}. Pickled weights can run code and are "
            "not read; fetch or convert to safetensors."
        )
    raise ValueError(f"{folder}: neither {ONE} nor {INDEX}. Give a folder with weights.")


def check_names(
    files: TensorFiles,
    expected: dict[str, tuple[int, ...]],
    ignored: Iterable[str],
    *,
    floats: bool = True,
    beside: tuple[str, ...] = (),
) -> None:
    """Raise a ValueError that names all missing, unexpected and mis-shaped tensors.

    Args:
      files: a folder's tensors.
      expected: name -> shape.
      ignored: ends of names that may be there too.
      floats: name tensors that are not floating point as well: the integers of a quantized model
        mean nothing without its scales.
      beside: starts of names that may be there too.
    """
    ignored = tuple(ignored)
    missing = [name for name in expected if name not in files.shapes]
    unexpected = [
        name
        for name in files.shapes
        if name not in expected and not name.endswith(ignored) and not name.startswith(beside)
    ]
    shaped = [
        f"{name} {list(files.shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if files.shapes.get(name, shape) != shape
    ]
    not_floats = [
        f"{n} {files.dtypes[n]}"
        for n in expected
        if floats and files.dtypes.get(n, "F32") not in _FLOATS
    ]
    said = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected),
                            ("of another shape", shaped), (f"not {', '.join(_FLOATS)}", not_floats))
        if names
    ]  # fmt: skip
    if said:
        raise ValueError(
            f"{files.folder}: tensors do not match config.json. {'; '.join(said)}. Use the "
            "config.json that belongs to these weights."
        )


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {rest} more" if rest > 0 else "")
