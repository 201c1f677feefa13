"""Changes of a jaxpr that a user could make in the source: to shardings and to dtypes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax import lax
from jax._src import source_info_util
from jax.extend import core
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# A position in a jaxpr: indices of equations, and the names of parameters that hold jaxprs.
Path = tuple[int | str, ...]


@dataclass(frozen=True)
class Edit:
    """One change at one equation.

    Attributes:
      path: where the equation is.
      action: "constrain" its result to `spec`; "constrain operand" number `operand` to it; "drop" a
        sharding constraint, or replace its sharding where `spec` is given; "narrow" its float32
        result (of a product) or operands (of a sum over devices) to bfloat16.
      spec: the PartitionSpec to assert.
      operand: position of an operand.
    """

    path: Path
    action: Literal["constrain", "constrain operand", "drop", "narrow"]
    spec: PartitionSpec | None = None
    operand: int = 0


def inner_jaxprs(eqn: Any) -> list[tuple[str, int, Any]]:
    """Return the jaxprs that an equation calls: (parameter, position in it, jaxpr)."""
    found = []
    for name, value in eqn.params.items():
        values = value if isinstance(value, tuple | list) else (value,)
        for position, inner in enumerate(values):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                found.append((name, position, inner))
    return found


def open_jaxpr(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a jaxpr without its constants, and the constants."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return inner, tuple(getattr(jaxpr, "consts", ()) or ())


def manual_axes(params: Any) -> frozenset[str]:
    """Return the mesh axes that a `jax.shard_map` is over, from its equation's parameters."""
    for name in ("newly_manual_axes", "manual_axes"):  # the latter before JAX 0.12
        if name in params:
            return frozenset(params[name])
    return frozenset(params["mesh"].axis_names)


def evaluate(jaxpr: Any, args: Sequence[Any], edits: Sequence[Edit], mesh: Mesh) -> list[Any]:
    """Evaluate a jaxpr with edits; under `jax.jit` this traces the changed program."""
    return _Evaluation(mesh).run(jaxpr, args, tuple(edits))


def _varies(aval: Any) -> bool:
    """Return whether an array inside `jax.shard_map` has its own values on each device."""
    kind = getattr(aval, "manual_axis_type", None)
    return bool(getattr(kind, "varying", None) or getattr(aval, "vma", None))


@dataclass(frozen=True)
class _Evaluation:
    mesh: Mesh

    def run(self, jaxpr: Any, args: Sequence[Any], edits: tuple[Edit, ...]) -> list[Any]:
        inner, consts = open_jaxpr(jaxpr)
        variables = (*inner.constvars, *inner.invars)
        values: dict[Any, Any] = dict(zip(variables, (*consts, *args), strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for index, eqn in enumerate(inner.eqns):
            here = [e for e in edits if e.path == (index,)]
            below = [e for e in edits if e.path[0] == index and len(e.path) > 1]
            operands = [read(v) for v in eqn.invars]
            for edit in here:
                if edit.action == "constrain operand":
                    operands[edit.operand] = self.constrain(operands[edit.operand], edit.spec)
            stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
            context = source_info_util.user_context(eqn.source_info.traceback, name_stack=stack)
            with context, eqn.ctx.manager:
                results = self.bind(eqn, operands, here, below)
            for var, result in zip(eqn.outvars, results, strict=True):
                values[var] = result
        return [read(v) for v in inner.outvars]

    def bind(self, eqn: Any, operands: list, here: list[Edit], below: list[Edit]) -> list[Any]:
        params = eqn.primitive.get_bind_params(eqn.params)
        if isinstance(params, tuple):  # before JAX 0.12: functions, parameters
            functions, params = params
            operands = [*functions, *operands]
        if below and eqn.primitive.name == "shard_map":
            return self.in_shard_map(eqn, operands, below)
        if below:
            params = params | self.changed_inner(eqn, below)
        actions = {e.action: e for e in here}
        if "drop" in actions:
            edit = actions["drop"]
            return [operands[0] if edit.spec is None else self.constrain(operands[0], edit.spec)]
        if "narrow" in actions:
            return self.narrowed(eqn, operands, params)
        results = eqn.primitive.bind(*operands, **params)
        results = list(results) if eqn.primitive.multiple_results else [results]
        if "constrain" in actions:
            results[0] = self.constrain(results[0], actions["constrain"].spec)
        return results

    def in_shard_map(self, eqn: Any, operands: list, below: list[Edit]) -> list[Any]:
        """Trace a `jax.shard_map` again with edits inside, so that its axes have their names."""
        params = eqn.params
        own = tuple(Edit(e.path[3:], e.action, e.spec, e.operand) for e in below)
        mapped = jax.shard_map(
            lambda *args: tuple(self.run(params["jaxpr"], args, own)), mesh=params["mesh"],
            in_specs=tuple(params["in_specs"]), out_specs=tuple(params["out_specs"]),
            axis_names=manual_axes(params), check_vma=params.get("check_vma", True),
        )  # fmt: skip
        return list(mapped(*operands))

    def narrowed(self, eqn: Any, operands: list, params: dict) -> list[Any]:
        narrow = jax.numpy.bfloat16
        if "preferred_element_type" in params:
            result = eqn.primitive.bind(*operands, **params | {"preferred_element_type": narrow})
            return [lax.convert_element_type(result, eqn.outvars[0].aval.dtype)]
        operands = [lax.convert_element_type(x, narrow) for x in operands]
        results = eqn.primitive.bind(*operands, **params)
        results = list(results) if eqn.primitive.multiple_results else [results]
        return [
            lax.convert_element_type(x, v.aval.dtype)
            for x, v in zip(results, eqn.outvars, strict=True)
        ]

    def constrain(self, x: Any, spec: PartitionSpec | None) -> Any:
        spec = PartitionSpec() if spec is None else spec
        if AxisType.Explicit in self.mesh.axis_types:
            return jax.sharding.reshard(x, spec)
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def changed_inner(self, eqn: Any, edits: list[Edit]) -> dict[str, Any]:
        """Return the parameters that hold jaxprs with edits inside, traced again."""
        changed: dict[str, Any] = {}
        for name, position, inner in inner_jaxprs(eqn):
            prefix = (name, position)
            own = tuple(
                Edit(e.path[3:], e.action, e.spec, e.operand)
                for e in edits
                if e.path[1:3] == prefix
            )
            if not own:
                continue
            traced = self.traced_again(inner, own)
            value = changed.get(name, eqn.params[name])
            if isinstance(value, tuple | list):
                parts = list(value)
                parts[position] = traced
                changed[name] = type(value)(parts)
            else:
                changed[name] = traced
        return changed

    def traced_again(self, jaxpr: Any, edits: tuple[Edit, ...]) -> Any:
        inner, consts = open_jaxpr(jaxpr)
        if inner.constvars and not consts:
            raise NotImplementedError("a jaxpr whose constants are not known")
        avals = [v.aval for v in inner.invars]
        if any(_varies(a) for a in avals):
            raise NotImplementedError("an operation in a loop or call inside jax.shard_map")
        is_explicit = AxisType.Explicit in self.mesh.axis_types
        structs = [
            jax.ShapeDtypeStruct(
                a.shape, a.dtype, weak_type=getattr(a, "weak_type", False),
                sharding=NamedSharding(self.mesh, a.sharding.spec) if is_explicit else None,
            )
            for a in avals
        ]  # fmt: skip
        made = jax.make_jaxpr(lambda *args: self.run(jaxpr, args, edits))(*structs)
        is_open = hasattr(jaxpr, "eqns") and not hasattr(made, "eqns")
        return made.jaxpr if is_open else made
