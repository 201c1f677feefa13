"""The assembler that turns Mosaic kernels into machine code, and the versions that miscompile them.

XLA's runtime does not look in JAX's own wheels first, so the version of an installed wheel does not
tell which assembler ran. The note that assemblers leave in a program does (CUDA 13 and later);
without a note, the search order does.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# The assemblers from CUDA 12.8.0 up to, but not including, CUDA 12.9.1. JAX refuses its own causal
# kernel with these (`jax.experimental.pallas.ops.gpu.attention_mgpu`).
MISCOMPILES_CAUSAL = ((12, 8, 0), (12, 9, 86))

_DATA_DIR = re.compile(r"--xla_gpu_cuda_data_dir=(\S+)")
_DEFAULT_DATA_DIR = "cuda_sdk_lib"  # default of that flag, relative to the working directory
_SYSTEM = Path("/usr/local/cuda")
_WHEELS = ("cu13", "cuda_nvcc")  # subpackages of `nvidia`
_VERSION = re.compile(r"release \d+\.\d+, V(\d+(?:\.\d+)+)")
# A serialized program is compressed: in "release 13.0, V13.0.88" the second "13.0" may be a
# two-byte reference to the first.
_NOTE = re.compile(rb"release (\d+\.\d+), V.{0,6}?\.(\d+)\0", re.DOTALL)
# The start of host machine code, which holds the Mosaic kernels. XLA's own kernels come before it.
_HOST_CODE = b"\x7fELF\x02\x01\x01\x00"


class Assembler(NamedTuple):
    """The version and origin of one assembler.

    Attributes:
      version: as the assembler reports it, such as "13.0.88".
      source: where it was found, in a word or two.
    """

    version: str
    source: str


def first_found() -> Assembler | None:
    """Return the assembler that comes first in XLA's search order; None if there is none."""
    return next(_installed(), None)


def assembler_of(compiled: Any) -> Assembler | None:
    """Return the assembler that compiled the Mosaic kernels of a program.

    Args:
      compiled: a `jax.stages.Compiled` for CUDA.

    Returns:
      The version in the program's note, and the first source that has this version. Without a
      note, the first assembler in the search order. None if there is neither.
    """
    try:
        version = noted_version(compiled.runtime_executable().serialize())
    except (RuntimeError, NotImplementedError):  # a runtime that cannot serialize
        version = None
    if version is None:
        return first_found()
    same = (assembler for assembler in _installed() if assembler.version == version)
    return next(same, Assembler(version, "a library"))


def noted_version(program: bytes) -> str | None:
    """Return the assembler's version from the note in a serialized program; None without a note."""
    _, host, kernels = program.rpartition(_HOST_CODE)
    notes = _NOTE.findall(kernels) if host else []
    return b".".join(notes[-1]).decode() if notes else None


def miscompiles_causal(version: str) -> bool:
    """Return whether the assembler of this version is known to miscompile causal kernels."""
    first, end = MISCOMPILES_CAUSAL
    return first <= numbers(version) < end


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, to compare it with others."""
    return tuple(int(x) for x in version.split(".") if x.isdigit())


def _installed() -> Iterator[Assembler]:
    """Yield the assemblers on this machine, in the order in which XLA's runtime searches."""
    flag = _DATA_DIR.search(os.environ.get("XLA_FLAGS", ""))
    folder = Path(_DEFAULT_DATA_DIR if flag is None else flag[1])
    candidates = [("--xla_gpu_cuda_data_dir", folder / "bin" / "ptxas")]
    if on_path := shutil.which("ptxas"):
        candidates.append(("PATH", Path(on_path)))
    candidates.append((str(_SYSTEM), _SYSTEM / "bin" / "ptxas"))
    candidates += (("nvidia wheel", path / "bin" / "ptxas") for path in _wheels())
    for source, path in candidates:
        if path.is_file() and (version := _version_of(path)) is not None:
            yield Assembler(version, source)


def _wheels() -> Iterator[Path]:
    found = importlib.util.find_spec("nvidia")
    folders = list((found and found.submodule_search_locations) or ())
    yield from (Path(folder, name) for name in _WHEELS for folder in folders)


@functools.cache
def _version_of(path: Path) -> str | None:
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = _VERSION.search(output)
    return None if version is None else version[1]
