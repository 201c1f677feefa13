"""The ledger of a compiled program: every collective, its bytes, executions and overlap."""

import bisect
import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from parallax.bounds import wire_bytes
from parallax.hlo.branches import Trips
from parallax.hlo.collectives import RAGGED, Collective, Ledger
from parallax.hlo.flops import Flops, executions, instruction_flops
from parallax.hlo.groups import axes_of_groups, axes_of_pairs, parse_groups, parse_pairs
from parallax.hlo.limits import MAX_BETWEEN
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.parse import parse_module
from parallax.hlo.ragged import RaggedBytes, check_ragged, with_ragged_bytes
from parallax.hlo.shapes import HloError, Shape

__all__ = ["Collective", "Ledger", "read_ledger"]

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
          RAGGED)  # fmt: skip
_REFUSED = ("collective-broadcast", "send", "recv")


def read_ledger(
    program: str | Module,
    mesh_axes: Mapping[str, int],
    *,
    ragged_bytes: RaggedBytes | None = None,
    trips: Trips | None = None,
) -> Ledger:
    """Read the ledger of a compiled program.

    Args:
      program: `compiled.as_text()`, or its `parse_module`.
      mesh_axes: mesh axis -> size, in the order of the mesh the program was compiled for.
      ragged_bytes: called with a ragged all-to-all, returns the bytes that leave a device in one
        execution, derived from the routing. None, or a result of None, counts the whole buffer as
        an upper bound. The collective's axes and payload_bytes identify it: the CUDA compiler drops
        op_name from these.
      trips: as for `module_flops`. Without a trip count a loop's collectives are counted for one
        iteration, and name the loop; those in a branch that `trips` does not know are counted as if
        their side is taken, and name it; totals take one side of each branch.

    Raises:
      HloError: a collective that is not understood, or a mesh of another size than the program's.
    """
    module = parse_module(program) if isinstance(program, str) else program
    devices = math.prod(mesh_axes.values())
    if devices != module.num_partitions:
        raise HloError(
            f"module {module.name}: compiled for {module.num_partitions} partitions, mesh axes "
            f"{dict(mesh_axes)} make {devices}. Pass the mesh it was compiled for."
        )
    wrapped = _wrapped_in_start(module, trips)
    found = []
    for computation, count, sides, loop in executions(module, trips):
        for position, instruction in enumerate(computation.instructions):
            kind = _kind(instruction)
            if kind is None:
                continue
            between = wrapped.get(computation.name)
            if between is None and _is_async(instruction):
                between = _between(module, computation, position, trips)
            moved = _collective(module, computation, instruction, kind, mesh_axes)
            whole = int(count) if count == int(count) else float(count)
            moved = dataclasses.replace(moved, count=whole, sides=sides, open_loop=loop)
            moved = with_ragged_bytes(moved, ragged_bytes)
            if between is not None:
                moved = dataclasses.replace(
                    moved, is_async=True, gemms_between=between.gemms, flops_between=between.low
                )
            found.append(moved)
    return Ledger(tuple(c for c in found if c.group_size > 1))


def _kind(instruction: Instruction) -> str | None:
    base = instruction.opcode.removesuffix("-start")
    to_host = instruction.attributes.get("is_host_transfer") == "true"
    if base.removesuffix("-done") in _REFUSED and not to_host:
        raise HloError(
            f"line {instruction.line}: %{instruction.name}: {instruction.opcode} is not "
            "understood: no closed form says how many bytes leave a device."
        )
    return base if base in _KINDS else None


def _is_async(instruction: Instruction) -> bool:
    sync = '"is_sync":true' in instruction.attributes.get("backend_config", "")
    return instruction.opcode.endswith("-start") and not sync


def _wrapped_in_start(module: Module, trips: Trips | None) -> dict[str, Flops]:
    """Find computations that a start calls (a fusion with a collective), with the work beside."""
    found: dict[str, Flops] = {}
    for computation in module.computations.values():
        for position, instruction in enumerate(computation.instructions):
            calls = instruction.calls().get("calls", ())
            if not (calls and _is_async(instruction)):
                continue
            inside = _reached(module, *calls)
            if any(_kind(i) for name in inside for i in module.computation(name).instructions):
                between = _between(module, computation, position, trips)
                if any(found.get(name, between) != between for name in inside):
                    raise HloError(f"line {instruction.line}: what %{instruction.name} starts is "
                                   "started elsewhere too, beside other work.")  # fmt: skip
                found.update(dict.fromkeys(inside, between))
    return found


def _reached(module: Module, *names: str) -> set[str]:
    """Return these computations and all that their fusions and async calls hold, each once."""
    found, waiting = set(names), list(names)
    while waiting:
        for instruction in module.computation(waiting.pop()).instructions:
            new = set(instruction.calls().get("calls", ())) - found
            found |= new
            waiting += new
    return found


def _collective(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    kind: str,
    mesh_axes: Mapping[str, int],
) -> Collective:
    """Read one execution of a collective."""
    arrays = [a for s in computation.operand_shapes(instruction) for a in s.elements or (s,)]
    result = _result(computation, instruction)
    sent, pairs, groups = sum(a.n_bytes for a in arrays), (), ()
    axes: tuple[str, ...] | None
    if kind == "collective-permute":
        pairs = parse_pairs(instruction.attributes["source_target_pairs"])
        axes = axes_of_pairs(pairs, mesh_axes)
        size = math.prod(mesh_axes[axis] for axis in axes)
    else:
        text = instruction.attributes["replica_groups"]
        try:
            groups = parse_groups(text, module.num_partitions)
        except HloError as error:
            raise HloError(f"line {instruction.line}: %{instruction.name}: {error}") from None
        axes, size = axes_of_groups(groups, mesh_axes), len(groups[0])
    if kind == RAGGED:
        check_ragged(instruction, arrays, result, size)
        # Rows are sent from the first operand and received into the second.
        arrays, sent = arrays[:1], arrays[0].n_bytes
    # The bytes received follow from the bytes sent: a cross-check of sizes and groups.
    times = Fraction(size if kind == "all-gather" else 1, size if kind == "reduce-scatter" else 1)
    received = sent if kind == RAGGED else result.n_bytes
    if received != sent * times:
        raise HloError(
            f"line {instruction.line}: %{instruction.name}: {kind} of {sent} bytes in groups of "
            f"{size}: expected {sent * times} bytes back, got {received}."
        )
    payload, per_dtype = max(sent, received), Counter[str]()
    for array in arrays:
        per_dtype[array.dtype] += array.n_bytes * payload // sent if sent else 0
    return Collective(
        kind=kind, axes=axes, group_size=size, payload_bytes=payload,
        wire_bytes=wire_bytes(kind, size, payload), count=1,
        dtype=",".join(sorted(per_dtype)), op_name=instruction.op_name,
        pairs=pairs, groups=groups,
        parts=tuple(sorted(per_dtype.items())) if len(per_dtype) > 1 else (),
        name=instruction.name,
    )  # fmt: skip


def _result(computation: Computation, instruction: Instruction) -> Shape:
    """Return a collective's result: for a start, that of its done."""
    if not instruction.opcode.endswith("-start"):
        return instruction.shape
    return computation.instructions[_done(computation, instruction)].shape


def _done(computation: Computation, start: Instruction) -> int:
    """Return the position of the one instruction that waits for a start.

    Raises:
      HloError: no instruction waits for it, or several do.
    """
    dones = computation.dones.get(start.name, ())
    if not dones:
        raise HloError(
            f"line {start.line}: %{start.name} starts and is never waited for in "
            f"%{computation.name}."
        )
    if len(dones) > 1:
        raise HloError(f"line {start.line}: %{start.name} is waited for {len(dones)} times.")
    return dones[0]


def _between(module: Module, computation: Computation, start: int, trips: Trips | None) -> Flops:
    """Count the FLOPs scheduled between an async start and its done."""
    done = _done(computation, computation.instructions[start])
    holding = computation.holding
    positions = holding[bisect.bisect_right(holding, start) : bisect.bisect_left(holding, done)]
    _count_between(module, len(positions))
    key = ("between", computation.name, *sorted((trips or {}).items()))
    known = module._memo.setdefault(key, {})
    low, high, gemms = 0.0, 0.0, 0
    for position in positions:
        if position not in known:
            instruction = computation.instructions[position]
            known[position] = instruction_flops(module, computation, instruction, trips=trips)
        flops = known[position]
        low, high, gemms = low + flops.low, high + flops.high, gemms + flops.gemms
    total = Flops(low, high, gemms)
    return total


def _count_between(module: Module, more: int) -> None:
    """Refuse texts that make counting too long: it may grow as the square of their length."""
    module._memo["between"] = module._memo.get("between", 0) + more
    if module._memo["between"] > MAX_BETWEEN:
        raise HloError(
            f"module {module.name}: over {MAX_BETWEEN} kernels beside collectives in flight."
        )
