"""The memory traffic of one kernel launch: the bytes it reads and writes, from its HLO.

A fusion touches only what its result needs: the slice of an operand that it slices, the update of
an array that it updates in place. Needed elements are traced from the root back to the parameters.
"""

import math

from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.products import CUBLAS as _CUBLAS
from parallax.hlo.products import custom_call_target
from parallax.hlo.shapes import HloError, Shape

# These read as many elements of the first operand as the result has.
_PICKING = ("slice", "dynamic-slice", "gather")
# These read every element of an operand, however few the result has.
_WHOLE = ("reduce", "reduce-window", "dot", "sort", "broadcast", "concatenate", "pad", "scatter",
          "convolution", "select-and-scatter", "topk", "fft", "cholesky", "triangular-solve",
          "custom-call")  # fmt: skip
_UPDATING = {"dynamic-update-slice": 1, "scatter": 2}  # opcode -> which operand is written
_RENAMING = ("bitcast", "convert", "copy", "reshape")
Reads = tuple[tuple[str, float], ...]


def traffic(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[Reads, float]:
    """Count what one launch moves: ((operand, bytes read of it), ...) and bytes written.

    Args:
      module, computation: the module and computation that hold the instruction.
      instruction: a fusion, or any other instruction that one kernel runs.

    Raises:
      HloError: a fusion and its computation differ in the number of operands.
    """
    called = instruction.calls().get("calls", ())
    if instruction.opcode.removesuffix("-start") == "fusion" and called:
        key = ("traffic", called[0])
        if key not in module._memo:
            module._memo[key] = _of_fusion(module.computation(called[0]))
        reads, written = module._memo[key]
        if len(reads) != len(instruction.operands):
            raise HloError(
                f"line {instruction.line}: %{instruction.name} has {len(instruction.operands)} "
                f"operands, %{called[0]} has {len(reads)} parameters."
            )
    else:
        reads, written = _alone(computation, instruction)
    return tuple(zip(instruction.operands, reads, strict=True)), written


def host_traffic(
    computation: Computation, instruction: Instruction, reads: Reads, written: float
) -> tuple[float, float]:
    """Count the bytes of a launch's `traffic` that go to the host's memory, and come from it."""
    operands, result = computation.operand_shapes(instruction), result_shape(instruction)
    target = custom_call_target(instruction)
    if target.endswith("_callback"):  # a function of the host takes the operands and gives results
        return sum(size for _, size in reads), written
    share = result.host_bytes / result.n_bytes if result.n_bytes else 0.0
    to_host = written * (1.0 if target == "MoveToHost" else share)
    from_host = sum(
        size
        for shape, (_, size) in zip(operands, reads, strict=True)
        if shape.on_host or target == "MoveToDevice"
    )
    return to_host, from_host


def result_shape(instruction: Instruction) -> Shape:
    """Return the shape of the result; for an async start without its operands and context."""
    elements = instruction.shape.elements
    if instruction.opcode.endswith("-start") and len(elements) > 1:
        return elements[0] if instruction.opcode == "copy-start" else elements[1]
    return instruction.shape


def _alone(computation: Computation, instruction: Instruction) -> tuple[list[float], float]:
    sizes = [float(s.n_bytes) for s in computation.operand_shapes(instruction)]
    opcode, out = instruction.opcode, float(result_shape(instruction).n_bytes)
    if opcode in _PICKING and sizes:
        return [min(sizes[0], out), *sizes[1:]], out
    written = _UPDATING.get(opcode, len(sizes))
    if written < len(sizes):
        read = sizes[written] if opcode == "scatter" else 0.0
        return [read, *sizes[1:]], sizes[written]
    return sizes, out


def _of_fusion(body: Computation) -> tuple[list[float], float]:
    """Count the bytes read of each parameter of a fusion, and the bytes written."""
    needed, in_place, written = _results(body)
    _walk_back(body, needed, in_place)
    parameters = sorted((i.parameter, i) for i in body.instructions if i.parameter >= 0)
    if [number for number, _ in parameters] != list(range(len(parameters))):
        raise HloError(f"%{body.name}: parameters are not numbered 0, 1, ...")
    shares = [needed[i.name] / max(1, _elements(i.shape)) for _, i in parameters]
    return [i.shape.n_bytes * s for (_, i), s in zip(parameters, shares, strict=True)], written


def _results(body: Computation) -> tuple[dict[str, float], set[str], float]:
    """Find what the results of a fusion need and write.

    Returns:
      Elements needed of each instruction for the results alone, names of the instructions that
      update a parameter in place, and bytes written.
    """
    by_name, needed = body.by_name, dict.fromkeys(body.by_name, 0.0)
    root = next(i for i in body.instructions if i.is_root)
    written, in_place, behind = 0.0, set(), _behind(body)
    for name in root.operands if root.opcode == "tuple" else (root.name,):
        result = by_name[name]
        if _is_workspace(by_name, result):
            continue
        shape = result.shape
        if _CUBLAS.match(custom_call_target(result)) and shape.elements:
            shape = shape.elements[0]  # the library's workspace is scratch, not traffic
        update = _updated(by_name, behind, result)
        needed[name] = float(_elements(shape))
        share = 1.0
        if update is not None:
            needed[name] = max(1.0, needed[name])
            in_place.add(update.name)
            changed = by_name[update.operands[_UPDATING[update.opcode]]]
            share = min(1.0, _elements(changed.shape) / needed[name])
        written += shape.n_bytes * share
    return needed, in_place, written


def _walk_back(body: Computation, needed: dict[str, float], in_place: set[str]) -> None:
    """Add the needed elements of operands to `needed`, from the results to the parameters."""
    by_name = body.by_name
    for instruction in reversed(body.instructions):
        want = needed[instruction.name]
        if not want or instruction.opcode == "tuple":
            continue
        for position, name in enumerate(instruction.operands):
            whole = float(_elements(by_name[name].shape))
            if instruction.name in in_place:
                more = _read_in_place(instruction, by_name, position, whole)
            else:
                more = _read_of_operand(instruction, position, whole, want)
            needed[name] = min(whole, needed[name] + more)


def _read_of_operand(instruction: Instruction, position: int, whole: float, want: float) -> float:
    """Count the elements of an operand of `whole` that `want` elements of the result need."""
    opcode = instruction.opcode
    if opcode in _PICKING and position == 0:
        return want
    if opcode in _WHOLE or opcode in _PICKING or opcode in _UPDATING:
        return whole
    return whole * min(1.0, want / max(1, _elements(instruction.shape)))


def _is_workspace(by_name: dict[str, Instruction], result: Instruction) -> bool:
    """Whether a result is the scratch workspace of a library's call inside a fusion."""
    if result.opcode != "get-tuple-element" or result.attributes.get("index") == "0":
        return False
    return bool(_CUBLAS.match(custom_call_target(by_name[result.operands[0]])))


def _updated(
    by_name: dict[str, Instruction], behind: dict[str, str], result: Instruction
) -> Instruction | None:
    """Return the instruction that makes a result by updating a parameter in place, if any."""
    result = by_name[behind[result.name]]
    if len(result.operands) <= _UPDATING.get(result.opcode, math.inf):
        return None
    target = by_name[behind[result.operands[0]]]
    return result if target.opcode == "parameter" else None


def _behind(body: Computation) -> dict[str, str]:
    """Map each array to the one it is another name or dtype of, or to itself."""
    sources: dict[str, str] = {}
    for i in body.instructions:
        renames = i.opcode in _RENAMING and i.operands
        sources[i.name] = sources[i.operands[0]] if renames else i.name
    return sources


def _read_in_place(
    update: Instruction, by_name: dict[str, Instruction], position: int, whole: float
) -> float:
    if position:
        return whole
    changed = by_name[update.operands[_UPDATING[update.opcode]]]
    return float(_elements(changed.shape)) if update.opcode == "scatter" else 0.0


def _elements(shape: Shape) -> int:
    if shape.dtype == "tuple":
        return sum(_elements(e) for e in shape.elements)
    return math.prod(shape.dims)
