"""An on-disk cache of programs compiled for absent GPUs: their text and their memory.

JAX's persistent compilation cache can write such a program but not read it back, so the compile
lens keeps what it needs of one in the same folder (`JAX_COMPILATION_CACHE_DIR`). Nothing is kept
if that is unset or not a local folder.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache
from jax.sharding import Mesh, NamedSharding

from parallax.hlo.constants import constant_bytes
from parallax.lenses.compiler_log import compiler_warnings, logs_warnings
from parallax.lenses.environment import installed_versions
from parallax.lenses.lowering import missing_libraries
from parallax.meshes.cluster import Cluster
from parallax.meshes.topology import topology_devices

# What decides the program besides its text. Raise _VERSION when the content of a file changes.
_VERSION = 2
_COMPILERS = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin",
              "jax-cuda13-pjrt", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvcc")  # fmt: skip

# A custom partitioner: the text holds the address of a Python function, which says nothing of it.
_CALLS_BACK = "CustomSPMDPartitioning"


@dataclasses.dataclass(frozen=True)
class CompiledText:
    """The scheduled HLO of a compiled program, and its memory in bytes per device.

    Attributes:
      text: the HLO text of the compiled module.
      argument_bytes, output_bytes, temp_bytes, alias_bytes: memory per device; aliased bytes are
        counted in both the arguments and the outputs.
      warnings: what XLA's partitioner warned of.
    """

    text: str
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int
    warnings: tuple[str, ...] = ()

    @functools.cached_property
    def constant_bytes(self) -> int:
        """The memory per device of constant arrays, which XLA's account leaves out."""
        return constant_bytes(self.text)

    @property
    def total_bytes(self) -> int:
        """The memory per device."""
        held = self.argument_bytes + self.output_bytes - self.alias_bytes
        return held + self.temp_bytes + self.constant_bytes


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
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    text = lowered.as_text(debug_info=True) if folder and "://" not in folder else ""
    if not text or _CALLS_BACK in text:
        return _compile(lowered, options, cluster, memory_bytes)
    key = hashlib.sha256()
    for part in (
        _VERSION, installed_versions(*_COMPILERS), os.environ.get("XLA_FLAGS", ""),
        os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", ""), logs_warnings(),
        cluster.gpu.name, cluster.gpu.target_config(memory_bytes), cluster.topology,
        sorted(options.items()), text,
    ):  # fmt: skip
        key.update(repr(part).encode())
    file = Path(folder) / f"parallax-{key.hexdigest()}.json.gz"
    if file.exists():
        kept = json.loads(gzip.decompress(file.read_bytes()))
        return CompiledText(**kept | {"warnings": tuple(kept["warnings"])})
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
    with compiler_warnings() as warnings, _jax_cache_left_alone(), missing_libraries():
        compiled = lowered.compile(dict(options), device_assignment=devices)
    memory = compiled.memory_analysis()
    return CompiledText(
        text=compiled.as_text(),
        argument_bytes=int(memory.argument_size_in_bytes),
        output_bytes=int(memory.output_size_in_bytes),
        temp_bytes=int(memory.temp_size_in_bytes),
        alias_bytes=int(memory.alias_size_in_bytes),
        warnings=tuple(dict.fromkeys(warnings)),
    )


@contextlib.contextmanager
def _jax_cache_left_alone() -> Iterator[None]:
    """Keep JAX's persistent cache as it is for the process's own programs.

    JAX decides by the first program whether this process uses the cache, and it cannot read back a
    program for an absent GPU.
    """
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    compilation_cache.is_cache_used(jax.devices()[0].client)
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _without_devices(sharding: Any) -> Any:
    """Return a sharding over an abstract mesh: JAX then takes the devices it compiles for."""
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return sharding
    kind = "pinned_host" if sharding.memory_kind == "pinned_host" else None
    return NamedSharding(sharding.mesh.abstract_mesh, sharding.spec, memory_kind=kind)
