"""Programs compiled for absent GPUs: their text and memory, kept on disk where JAX keeps programs.

JAX's persistent cache can write such a program and not read it back, so the compile lens keeps what
it needs of one in the same folder (`JAX_COMPILATION_CACHE_DIR`). Nothing is kept
without one, or where it is not on a disk.
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

# What makes another program of the same text. A change to what is kept changes the first.
_VERSION = 1
_COMPILERS = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin",
              "jax-cuda13-pjrt", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvcc")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CompiledText:
    """The scheduled HLO of a program, and the bytes per device that it takes.

    Attributes:
      text: of the compiled module.
      argument_bytes, output_bytes, temp_bytes, alias_bytes: per device; aliases are counted in
        arguments and in outputs.
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
    """Compiles a lowered program, or reads it back where the same was compiled before.

    Args:
      lowered: a `jax.stages.Lowered` for devices of `topology_devices(cluster, memory_bytes)`.
      options: for XLA.
      cluster: the absent GPUs.
      device_ids: of the mesh, in its order.
      memory_bytes: device memory that the compiler plans for; None takes the GPU's own.
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
    # Renamed when whole: several processes may keep the same program at once.
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
