"""The checks that shapes stated twice in HLO text agree, so that damage cannot change a count.

Checked are the operands and result of a call against the called computation, a computation's
header, tuples and their elements, starts and dones, and the ops whose result's size follows from
their operands'.
"""

import math
import re
from collections.abc import Callable

from parallax.hlo.limits import short
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.opcodes import SAME_DIMS
from parallax.hlo.shapes import HloError, Shape, parse_shape

_PARAMETER_NAME = re.compile(r"([(,]\s*(?:/\*index=\d+\*/)?)[^\s(),:]+: ")


def check_agreement(module: Module) -> None:
    """Raise HloError where two shapes that must be equal are not."""
    for computation in module.computations.values():
        _check_header(computation)
        for i in computation.instructions:
            if not _agrees(module, computation, i, computation.operand_shapes(i)):
                raise HloError(
                    f"line {i.line}: {i.opcode} %{i.name} in %{computation.name}: its shape, its "
                    "operands' and those of what it calls do not agree."
                )


def _check_header(computation: Computation) -> None:
    """Check a header such as `(p: f32[8], ...) -> f32[8]` against the parameters and ROOT."""
    if not computation.header:  # short forms leave it out
        return
    parameters, _, result = computation.header.rpartition(" -> ")
    stated = parse_shape(_PARAMETER_NAME.sub(r"\1", parameters))
    if (stated.elements, parse_shape(result)) != _signature(computation):
        raise HloError(
            f"%{computation.name}: its header {short(computation.header)} is not what its "
            "parameters and ROOT say."
        )


def _signature(computation: Computation) -> tuple[tuple[Shape, ...], Shape]:
    """Return the shapes of the parameters in order, and the shape of the ROOT."""
    numbers = sorted(i.parameter for i in computation.instructions if i.parameter >= 0)
    if numbers != list(range(len(numbers))):
        raise HloError(f"%{computation.name}: parameters are not numbered 0, 1, ...")
    by_number = {i.parameter: i.shape for i in computation.instructions if i.parameter >= 0}
    root = next(i.shape for i in computation.instructions if i.is_root)
    return tuple(by_number[n] for n in numbers), root


def _signature_of(module: Module, name: str) -> tuple[tuple[Shape, ...], Shape]:
    key = ("signature", name)
    if key not in module._memo:
        module._memo[key] = _signature(module.computation(name))
    return module._memo[key]


def _agrees(
    module: Module, computation: Computation, i: Instruction, operands: tuple[Shape, ...]
) -> bool:
    if (rule := _RULES.get(i.opcode)) is not None:
        return rule(i, operands)
    if i.opcode.endswith(("-done", "-update")) and not i.opcode.startswith(("send", "recv")):
        return _start_agrees(computation, i)
    return _calls_agree(module, i, operands)


def _tuple_agrees(i: Instruction, operands: tuple[Shape, ...]) -> bool:
    return i.shape.dtype == "tuple" and i.shape.elements == operands


def _element_agrees(i: Instruction, operands: tuple[Shape, ...]) -> bool:
    index = i.attributes.get("index", "")
    if len(operands) != 1 or not re.fullmatch(r"[0-9]{1,8}", index):
        return False
    elements = operands[0].elements
    return int(index) < len(elements) and elements[int(index)] == i.shape


def _dims_agree(i: Instruction, operands: tuple[Shape, ...]) -> bool:
    arrays = [s for s in operands if s.dims]
    return bool(operands) and all(s.dims == i.shape.dims for s in arrays)


def _bytes_agree(i: Instruction, operands: tuple[Shape, ...]) -> bool:
    return len(operands) == 1 and operands[0].n_bytes == i.shape.n_bytes


def _size_agrees(i: Instruction, operands: tuple[Shape, ...]) -> bool:
    return len(operands) == 1 and math.prod(operands[0].dims) == math.prod(i.shape.dims)


def _slice_agrees(i: Instruction, operands: tuple[Shape, ...]) -> bool:
    return len(operands) == 1 and _inside(i.shape, operands[0])


def _dynamic_slice_agrees(i: Instruction, operands: tuple[Shape, ...]) -> bool:
    inside = bool(operands) and _inside(i.shape, operands[0])
    return inside and _indices(i.shape, operands[1:])


def _dynamic_update_agrees(i: Instruction, operands: tuple[Shape, ...]) -> bool:
    if len(operands) < 2 or operands[0] != i.shape:
        return False
    return _inside(operands[1], i.shape) and _indices(i.shape, operands[2:])


_RULES: dict[str, Callable[[Instruction, tuple[Shape, ...]], bool]] = {
    "tuple": _tuple_agrees,
    "get-tuple-element": _element_agrees,
    **dict.fromkeys(SAME_DIMS, _dims_agree),
    **dict.fromkeys(("bitcast", "bitcast-convert"), _bytes_agree),
    **dict.fromkeys(("reshape", "transpose"), _size_agrees),
    "slice": _slice_agrees,
    "dynamic-slice": _dynamic_slice_agrees,
    "dynamic-update-slice": _dynamic_update_agrees,
}


def _start_agrees(computation: Computation, i: Instruction) -> bool:
    """Whether a done or update waits for a start of the same operation."""
    started = computation.by_name[i.operands[0]] if i.operands else None
    base = i.opcode.removesuffix("-done").removesuffix("-update")
    return started is not None and started.opcode in (f"{base}-start", f"{base}-update")


def _inside(part: Shape, whole: Shape) -> bool:
    return len(part.dims) == len(whole.dims) and all(
        a <= b for a, b in zip(part.dims, whole.dims, strict=True)
    )


def _indices(shape: Shape, operands: tuple[Shape, ...]) -> bool:
    """Whether the operands are one integer for each dim."""
    return len(operands) == len(shape.dims) and all(
        s.dtype[0] in "su" and not s.dims for s in operands
    )


def _calls_agree(module: Module, i: Instruction, operands: tuple[Shape, ...]) -> bool:
    calls, opcode = i.calls(), i.opcode
    if opcode == "while":
        body, condition = (_signature_of(module, calls[k][0]) for k in ("body", "condition"))
        carried = (i.shape,)
        return operands == carried and body == (carried, i.shape) and condition[0] == carried
    if opcode == "conditional":
        if "branch_computations" in calls:
            names = calls["branch_computations"]
        else:
            names = (calls["true_computation"][0], calls["false_computation"][0])
        return len(operands) == len(names) + 1 and all(
            _signature_of(module, name) == ((operand,), i.shape)
            for name, operand in zip(names, operands[1:], strict=True)
        )
    base = opcode.removesuffix("-start")
    called = {"fusion": "calls", "async": "calls", "call": "to_apply"}.get(base)
    if called is None or called not in calls:
        return True
    signature = _signature_of(module, calls[called][0])
    return signature[0] == operands and (base != opcode or signature[1] == i.shape)
