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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh, NamedSharding

from parallax.lenses.environment import installed_versions
from parallax.meshes.cluster import Cluster
from parallax.meshes.topology import topology_devices

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
    memory_bytes: int | None = None,
) -> CompiledText:
    """Compile a lowered program for a cluster, or read it from the cache if it was before.

    Args:
      lowered: a `jax.stages.Lowered` for CUDA. Whatever devices it was lowered for, the cluster's
        stand in for them, in their order.
      options: XLA compiler options.
      cluster: the GPUs compiled for, absent here.
      memory_bytes: device memory that the compiler plans for; None is the GPU's own.
    """
    import jax

    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not folder or "://" in folder:
        return _compile(lowered, options, cluster, memory_bytes)
    key = hashlib.sha256()
    for part in (
        _VERSION, installed_versions(*_COMPILERS), os.environ.get("XLA_FLAGS", ""),
        cluster.gpu.name, cluster.gpu.target_config(memory_bytes), cluster.topology,
        sorted(options.items()), lowered.as_text(debug_info=True),
    ):  # fmt: skip
        key.update(repr(part).encode())
    file = Path(folder) / f"parallax-{key.hexdigest()}.json.gz"
    if file.exists():
        return CompiledText(**json.loads(gzip.decompress(file.read_bytes())))
    found = _compile(lowered, options, cluster, memory_bytes)
    data = gzip.compress(json.dumps(dataclasses.asdict(found)).encode(), compresslevel=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Written to another file and renamed: several processes may write the same program at once.
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as whole:
        whole.write(data)
    os.replace(whole.name, file)
    return found


def _compile(
    lowered: Any,
    options: Mapping[str, bool | int | str],
    cluster: Cluster,
    memory_bytes: int | None,
) -> CompiledText:
    lowering = lowered._lowering
    count = lowering.compile_args["num_devices"]
    devices = tuple(topology_devices(cluster, memory_bytes)[:count])
    # JAX compiles for other devices than it lowered for only if it lowered for none.
    lowering._device_list = None
    arguments = lowering.compile_args
    arguments["backend"] = devices[0].client
    for name in ("in_shardings", "out_shardings"):
        arguments[name] = tuple(_without_devices(s) for s in arguments[name])
    compiled = lowered.compile(dict(options), device_assignment=devices)
    memory = compiled.memory_analysis()
    return CompiledText(
        text=compiled.as_text(),
        argument_bytes=int(memory.argument_size_in_bytes),
        output_bytes=int(memory.output_size_in_bytes),
        temp_bytes=int(memory.temp_size_in_bytes),
        alias_bytes=int(memory.alias_size_in_bytes),
    )


def _without_devices(sharding: Any) -> Any:
    """Return a sharding over an abstract mesh: JAX then takes the devices it compiles for."""
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return sharding
    kind = "pinned_host" if sharding.memory_kind == "pinned_host" else None
    return NamedSharding(sharding.mesh.abstract_mesh, sharding.spec, memory_kind=kind)
