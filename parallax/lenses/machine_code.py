"""The machine code of Mosaic kernels for the H100, made without a GPU: registers, spills.

Needs the `aot` extra, and a process of its own (`lenses.child`, `compile_environment()`).
"""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parallax.kernels.assembler import Assembler, assembler_of


@dataclass(frozen=True)
class MachineCode:
    """The report of the assembler and of Mosaic on one kernel.

    Attributes:
      name: the kernel's name.
      products: input dtype of each of its wgmma instructions ("f16", "bf16", "s8").
      warpgroups: warpgroups per thread block.
      entry_registers: registers per thread at the start.
      registers: registers per thread as each warpgroup's role sets them, in the order of the text.
      stack_bytes, spill_store_bytes, spill_load_bytes: memory per thread in place of registers.
      shared_bytes: shared memory per thread block, the most of all kernels of this name.
      assembler: the assembler, and where it was found.
      warnings: lines in which the assembler warns, or reports that asynchronous wgmma instructions
        are serialized.
    """

    name: str
    products: tuple[str, ...]
    warpgroups: int
    entry_registers: int
    registers: tuple[int, ...]
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    assembler: Assembler
    warnings: tuple[str, ...]

    @property
    def spills(self) -> bool:
        """Whether the kernel keeps anything in memory for want of registers."""
        return bool(self.stack_bytes or self.spill_store_bytes or self.spill_load_bytes)

    @property
    def started_with(self) -> int:
        """The registers that a block starts with: those per thread, summed over its warpgroups."""
        return self.warpgroups * self.entry_registers

    @property
    def asked_for(self) -> int:
        """The registers as in `started_with` once each role has set its own; more hang the block.

        A role that gives registers away has one warpgroup; roles that take some share the others.
        """
        given = [x for x in self.registers if x < self.entry_registers]
        taken = [x for x in self.registers if x >= self.entry_registers]
        if not taken:
            return self.started_with
        return sum(given) + sum(taken) * (self.warpgroups - len(given)) // len(taken)


def compile_kernels(
    function: Callable, arrays: Sequence[Any], cluster: str = "h100_1x1"
) -> list[MachineCode]:
    """Compile `function(*arrays)` for one GPU; return its kernels that are new to this process.

    Args:
      function: the function to jit.
      arrays: its arguments, anything with a shape and a dtype.
      cluster: name of a cluster of the kind of GPU to compile for.
    """
    import jax
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from parallax.meshes.cluster import cluster as cluster_named
    from parallax.meshes.topology import topology_devices

    devices = np.array(topology_devices(cluster_named(cluster))[:1])
    mesh = Mesh(devices, ("x",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in arrays]
    with (
        tempfile.TemporaryDirectory() as folder,
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    ):
        os.environ.update(
            MOSAIC_GPU_DUMP_TO=folder, MOSAIC_GPU_DUMP_PTX="1", MOSAIC_GPU_DUMP_PTXAS="1"
        )
        assembler = assembler_of(jax.jit(function).lower(*like).compile())
        assert assembler is not None, "something assembled this"
        return [_read(file, assembler) for file in sorted(Path(folder).glob("*.ptx"))]


def compile_operations(
    names: Sequence[str], *, on_progress: Callable[[str], None]
) -> list[tuple[str, str, MachineCode]]:
    """Compile every shipped case of some of OPERATIONS: (operation, case, kernel) for each."""
    from parallax.kernels.operations import OPERATIONS

    found = []
    for name in names:
        operation = OPERATIONS[name]
        for number, case in enumerate(operation.SHIPPED, 1):
            on_progress(f"{name}, case {number} of {len(operation.SHIPPED)}: {case.name}")
            program, arrays = operation.program(case, "mosaic"), operation.inputs(case, 0)
            found += [(name, case.name, code) for code in compile_kernels(program, arrays)]
    return found


def _read(ptx: Path, assembler: Assembler) -> MachineCode:
    text, report = ptx.read_text(), ptx.with_suffix(".ptxas").read_text()
    name = re.sub(r"_\d+$", "", ptx.stem)
    ((stack, stores, loads),) = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    (entry,) = re.findall(r"Used (\d+) registers", report)
    # These files are numbered as kernels are traced, the others as kernels are compiled.
    resources = "".join(
        file.read_text()
        for file in ptx.parent.iterdir()
        if re.fullmatch(rf"{name}_\d+\.resources\.txt", file.name)
    )
    (threads,) = re.findall(r"\.maxntid (\d+)", text)
    products = re.findall(r"wgmma\.mma_async\.sync\.aligned\.\w+\.\w+\.(\w+)\.", text)
    return MachineCode(
        name=name,
        products=tuple(products),
        warpgroups=int(threads) // 128,
        entry_registers=int(entry),
        registers=tuple(int(x) for x in re.findall(r"setmaxnreg\S*\s+(\d+);", text)),
        stack_bytes=int(stack),
        spill_store_bytes=int(stores),
        spill_load_bytes=int(loads),
        shared_bytes=max(map(int, re.findall(r"smem_scratch_bytes=(\d+)", resources))),
        assembler=assembler,
        warnings=tuple(re.findall(r".*(?:[Ww]arning|are serialized).*", report)),
    )
