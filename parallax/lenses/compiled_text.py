"""An on-disk cache of programs compiled for absent GPUs: their text and their memory.

JAX's persistent compilation cache can write such a program but not read it back, so the compile
lens keeps what it needs of one in the same folder (`JAX_COMPILATION_CACHE_DIR`). Nothing is kept
if that is unset or not a local folder.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parallax.lenses.environment import installed_versions
from parallax.meshes.cluster import Cluster

# What decides the program besides its text. Raise _VERSION when the content of a file changes.
_VERSION = 1
_COMPILERS = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin",
              "jax-cuda13-pjrt", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvcc")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CompiledText:
    """The scheduled HLO of a compiled program, and its memory in bytes per device.

    Attributes:
      text: the HLO text of the compiled module.
      argument_bytes, output_bytes, temp_bytes, alias_bytes: memory per device; aliased bytes are
        counted in both the arguments and the outputs.
    """

    text: str
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int


def compile_text(
    lowered: Any,
    options: Mapping[str, bool | int | str],
    cluster: Cluster,
    device_ids: Sequence[int],
    memory_bytes: int | None = None,
) -> CompiledText:
    """Compile a lowered program, or read it from the cache if it was compiled before.

    Args:
      lowered: a `jax.stages.Lowered` for devices of `topology_devices(cluster, memory_bytes)`.
      options: XLA compiler options.
      cluster: the GPUs compiled for, absent here.
      device_ids: ids of the mesh's devices, in mesh order.
      memory_bytes: device memory that the compiler plans for; None is the GPU's own.
    """
    import jax

    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not folder or "://" in folder:
        return _compile(lowered, options)
    key = hashlib.sha256()
    for part in (
        _VERSION, installed_versions(*_COMPILERS), os.environ.get("XLA_FLAGS", ""),
        cluster.gpu.name, cluster.gpu.target_config(memory_bytes), cluster.topology,
        list(device_ids), sorted(options.items()), lowered.as_text(debug_info=True),
    ):  # fmt: skip
        key.update(repr(part).encode())
    file = Path(folder) / f"parallax-{key.hexdigest()}.json.gz"
    if file.exists():
        return CompiledText(**json.loads(gzip.decompress(file.read_bytes())))
    found = _compile(lowered, options)
    data = gzip.compress(json.dumps(dataclasses.asdict(found)).encode(), compresslevel=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Written to another file and renamed: several processes may write the same program at once.
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as whole:
        whole.write(data)
    os.replace(whole.name, file)
    return found


def _compile(lowered: Any, options: Mapping[str, bool | int | str]) -> CompiledText:
    compiled = lowered.compile(dict(options))
    memory = compiled.memory_analysis()
    return CompiledText(
        text=compiled.as_text(),
        argument_bytes=int(memory.argument_size_in_bytes),
        output_bytes=int(memory.output_size_in_bytes),
        temp_bytes=int(memory.temp_size_in_bytes),
        alias_bytes=int(memory.alias_size_in_bytes),
    )
