"""Which assembler turns Mosaic kernels into machine code, and which versions miscompile them.

XLA's runtime does not look where JAX's own wheels are first, so that the version of a wheel that is
installed says nothing. A program's note says it (assemblers from CUDA 13 on leave one); without a
note, the search order does.
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

Version = tuple[int, ...]

# The assemblers of CUDA 12.8.0 up to, and without, CUDA 12.9.1. JAX refuses its own causal kernel
# there (`jax.experimental.pallas.ops.gpu.attention_mgpu`).
MISCOMPILES_CAUSAL = ((12, 8, 0), (12, 9, 86))

_DATA_DIR = re.compile(r"--xla_gpu_cuda_data_dir=(\S+)")
_DEFAULT_DATA_DIR = "cuda_sdk_lib"  # of that flag, in the folder where a program runs
_SYSTEM = Path("/usr/local/cuda")
_WHEELS = ("cu13", "cuda_nvcc")  # under `nvidia`
_VERSION = re.compile(r"release \d+\.\d+, V(\d+(?:\.\d+)+)")
# A serialized program is compressed: of "release 13.0, V13.0.88" the second "13.0" may be a
# reference of two bytes to the first.
_NOTE = re.compile(rb"release (\d+\.\d+), V.{0,6}?\.(\d+)\0", re.DOTALL)
# Machine code of the host starts so; it holds the Mosaic kernels. XLA's own kernels come before.
_HOST_CODE = b"\x7fELF\x02\x01\x01\x00"


class Assembler(NamedTuple):
    """One assembler.

    Attributes:
      version: as it says itself, "13.0.88".
      source: where it was found, in a word or two.
    """

    version: str
    source: str


def first_found() -> Assembler | None:
    """The assembler that comes first in XLA's search order; None if there is none."""
    return next(_found(), None)


def assembler_of(compiled: Any) -> Assembler | None:
    """The assembler that made the Mosaic kernels of a compiled program.

    Args:
      compiled: a `jax.stages.Compiled` for CUDA.

    Returns:
      What the program's note says, and the first source that has this version. Without a note, the
      first of the search order. None if neither says anything.
    """
    try:
        version = noted_version(compiled.runtime_executable().serialize())
    except (RuntimeError, NotImplementedError):  # a runtime that cannot serialize
        version = None
    if version is None:
        return first_found()
    same = (found for found in _found() if found.version == version)
    return next(same, Assembler(version, "a library"))


def noted_version(program: bytes) -> str | None:
    """The version in the note that an assembler left in a serialized program; None without one."""
    _, host, kernels = program.rpartition(_HOST_CODE)
    notes = _NOTE.findall(kernels) if host else []
    return b".".join(notes[-1]).decode() if notes else None


def miscompiles_causal(version: str) -> bool:
    """Whether the assembler of this version is known to break causal kernels."""
    first, end = MISCOMPILES_CAUSAL
    return first <= _numbers(version) < end


def _numbers(version: str) -> Version:
    return tuple(int(x) for x in version.split("."))


def _found() -> Iterator[Assembler]:
    """The assemblers on this machine, in the order in which XLA's runtime looks for them."""
    flag = _DATA_DIR.search(os.environ.get("XLA_FLAGS", ""))
    folder = Path(_DEFAULT_DATA_DIR if flag is None else flag[1])
    candidates = [("--xla_gpu_cuda_data_dir", folder / "bin" / "ptxas")]
    if on_path := shutil.which("ptxas"):
        candidates.append(("PATH", Path(on_path)))
    candidates.append((str(_SYSTEM), _SYSTEM / "bin" / "ptxas"))
    candidates += [("nvidia wheel", path / "bin" / "ptxas") for path in _wheels()]
    for source, path in candidates:
        if path.is_file() and (version := _version_of(path)) is not None:
            yield Assembler(version, source)


def _wheels() -> Iterator[Path]:
    if importlib.util.find_spec("nvidia") is None:
        return
    for name in _WHEELS:
        spec = importlib.util.find_spec(f"nvidia.{name}")
        if spec is not None:
            yield from map(Path, spec.submodule_search_locations or ())


@functools.cache
def _version_of(path: Path) -> str | None:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = _VERSION.search(said)
    return None if found is None else found[1]
