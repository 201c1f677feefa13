"""The equations of a traced program: where they are, how often they run, what they derive from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jax._src import source_info_util
from jax.extend import core

from parallax.explanations.edits import Path, inner_jaxprs, open_jaxpr
from parallax.explanations.source_lines import SourceLine, users_line
from parallax.hlo.source import Frame

Origins = frozenset[int]
_NONE: Origins = frozenset()
# Results of these hold the values of their first operand, elsewhere or in part.
_MOVING = {
    "convert_element_type", "copy", "copy_p", "reshape", "transpose", "squeeze", "expand_dims",
    "broadcast_in_dim", "sharding_constraint", "reshard", "optimization_barrier", "slice",
    "dynamic_slice", "rev", "name", "pvary", "pcast", "mesh_cast", "stop_gradient",
    "reduce_precision",
}  # fmt: skip
# An updated state is made of the old one by these.
_UPDATING = {
    "add", "sub", "mul", "div", "max", "min", "select_n", "add_any", "neg", "clamp",
    "dynamic_update_slice", "scatter", "scatter-add", "scatter_add", "masked_dynamic_update_slice",
}  # fmt: skip
_IN_PLACE = ("dynamic_update_slice", "scatter", "scatter-add", "scatter_add")


@dataclass(frozen=True)
class Equation:
    """One equation of a program.

    Attributes:
      path: where it is, see `Edit`.
      eqn: JAX's own.
      times: executions in one run, loops of known length multiplied out.
      holds: for each operand, the arguments whose values it holds, moved or cast.
    """

    path: Path
    eqn: Any
    times: float
    holds: tuple[Origins, ...]

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.eqn.primitive.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first result, of whole arrays outside shard_map."""
        return tuple(getattr(self.eqn.outvars[0].aval, "shape", ())) if self.eqn.outvars else ()

    @property
    def dtype(self) -> str:
        """The dtype of the first result."""
        return str(getattr(self.eqn.outvars[0].aval, "dtype", "")) if self.eqn.outvars else ""

    @cached_property
    def line(self) -> SourceLine | None:
        """The user's line that it comes from."""
        traceback = self.eqn.source_info.traceback
        if traceback is None:
            return None
        frames = source_info_util.user_frames(traceback)
        return users_line(Frame(f.file_name, f.start_line, f.function_name) for f in frames)

    @property
    def flops(self) -> float:
        """The FLOPs of one execution of a matrix product over whole arrays; 0 for others."""
        if self.name != "dot_general":
            return 0.0
        (contracted, _), _ = self.eqn.params["dimension_numbers"]
        lhs = self.eqn.invars[0].aval.shape
        return 2.0 * math.prod(self.shape) * math.prod(lhs[d] for d in contracted)


def equations(jaxpr: Any, holds: Sequence[Origins]) -> list[Equation]:
    """List all equations of a jaxpr, called ones after their caller.

    Args:
      jaxpr: the program.
      holds: for each of its variables, the arguments whose values it holds.
    """
    return list(_walk(jaxpr, tuple(holds), (), 1.0))


def _walk(jaxpr: Any, holds: tuple[Origins, ...], path: Path, times: float) -> Iterator[Equation]:
    inner, _ = open_jaxpr(jaxpr)
    known: dict[Any, Origins] = dict(zip(inner.invars, holds, strict=False))

    def of(atom: Any) -> Origins:
        return _NONE if isinstance(atom, core.Literal) else known.get(atom, _NONE)

    for index, eqn in enumerate(inner.eqns):
        operands = tuple(of(v) for v in eqn.invars)
        here = (*path, index)
        yield Equation(here, eqn, times, operands)
        for name, position, called in inner_jaxprs(eqn):
            passed, repeats = _passed(eqn, name, called, operands)
            yield from _walk(called, passed, (*here, name, position), times * repeats)
        if eqn.primitive.name in _MOVING and operands:
            known[eqn.outvars[0]] = operands[0]


def _passed(eqn: Any, name: str, called: Any, operands: tuple) -> tuple[tuple, float]:
    """Return what the variables of a called jaxpr hold, and how often it runs."""
    count = len(open_jaxpr(called)[0].invars)
    kind, params = eqn.primitive.name, eqn.params
    if kind == "while":
        conds, bodies = params["cond_nconsts"], params["body_nconsts"]
        carry = (_NONE,) * (len(operands) - conds - bodies)  # changed by each iteration
        consts = operands[:conds] if name.startswith("cond") else operands[conds : conds + bodies]
        return (*consts, *carry), 1.0
    if kind == "scan":
        consts, carried = scan_counts(params)
        after = operands[consts + carried :]
        return (*operands[:consts], *(_NONE,) * carried, *after), float(params["length"])
    if kind == "cond":
        return operands[1:], 1.0
    return (operands if len(operands) == count else (_NONE,) * count), 1.0


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of a scan's operands are constants, and how many are carried."""
    if "num_consts" in params:  # before JAX 0.12
        return params["num_consts"], params["num_carry"]
    consts, carried, _ = (len(list(part)) for part in params["ft_in"].unpack())
    return consts, carried


def updated_arguments(jaxpr: Any, arguments: Sequence[Any]) -> dict[int, tuple[int, bool]]:
    """Find the results that are updated arguments: result -> (argument, written in place).

    An updated argument has the result's shape and dtype and reaches it element by element, as
    parameters reach new parameters, or by writing a part, as a cache does.

    Args:
      jaxpr: the program.
      arguments: its variables, in the order of the arguments.
    """
    inner, _ = open_jaxpr(jaxpr)
    seeds = {v: frozenset({(i, False)}) for i, v in enumerate(arguments)}
    results = _updates(inner, [seeds.get(v, frozenset()) for v in inner.invars])
    found: dict[int, tuple[int, bool]] = {}
    taken: set[int] = set()
    for position, (var, origins) in enumerate(zip(inner.outvars, results, strict=True)):
        for argument, in_place in sorted(origins, key=lambda o: (not o[1], o[0])):
            aval = arguments[argument].aval
            same = (aval.shape, aval.dtype) == (var.aval.shape, var.aval.dtype)
            if same and argument not in taken:
                found[position] = (argument, in_place)
                taken.add(argument)
                break
    return found


def _updates(inner: Any, holds: list) -> list:
    """Return, for each result of a jaxpr, the arguments that it may be an update of."""
    known: dict[Any, frozenset] = dict(zip(inner.invars, holds, strict=False))

    def of(atom: Any) -> frozenset:
        return frozenset() if isinstance(atom, core.Literal) else known.get(atom, frozenset())

    for eqn in inner.eqns:
        operands, name = [of(v) for v in eqn.invars], eqn.primitive.name
        called = inner_jaxprs(eqn)
        if name in _MOVING and operands:
            known[eqn.outvars[0]] = operands[0]
        elif name in _IN_PLACE:
            known[eqn.outvars[0]] = frozenset((i, True) for i, _ in operands[0])
        elif name in _UPDATING:
            shape = eqn.outvars[0].aval.shape
            same = [
                o for o, v in zip(operands, eqn.invars, strict=True)
                if getattr(v.aval, "shape", None) == shape
            ]  # fmt: skip
            known[eqn.outvars[0]] = frozenset().union(*same)
        elif called and name in ("scan", "while", "cond"):
            for results in _updates_inside(eqn, called, operands):
                for var, origins in zip(eqn.outvars, results, strict=False):
                    known[var] = known.get(var, frozenset()) | origins
        elif len(called) == 1:
            results = _updates(open_jaxpr(called[0][2])[0], operands)
            known.update(zip(eqn.outvars, results, strict=False))
    return [of(v) for v in inner.outvars]


def _updates_inside(eqn: Any, called: list, operands: list) -> Iterator[list]:
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        for _, _, branch in called:
            yield _updates(open_jaxpr(branch)[0], operands[1:])
    elif name == "scan":
        yield _updates(open_jaxpr(params["jaxpr"])[0], operands)
    else:
        skipped = params["cond_nconsts"]
        yield _updates(open_jaxpr(params["body_jaxpr"])[0], operands[skipped:])
