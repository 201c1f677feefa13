"""Changes of a jaxpr that a user could make in the source: to shardings and to dtypes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
        result (of a product) or operands (of a sum over devices) to bfloat16; "carry" the inputs
        of a scan that it updates and stacks, see `pairs`.
      spec: the PartitionSpec to assert.
      operand: position of an operand.
      pairs: (operand, result) of each array to carry.
    """

    path: Path
    action: Literal["constrain", "constrain operand", "drop", "narrow", "carry"]
    spec: PartitionSpec | None = None
    operand: int = 0
    pairs: tuple[tuple[int, int], ...] = ()


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


def manual_axes(params: Mapping[str, Any]) -> frozenset[str]:
    """Return the mesh axes that a `jax.shard_map` is over, from its equation's parameters."""
    return frozenset(params.get("newly_manual_axes", params.get("manual_axes", ())))


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of a scan's operands are constants, and how many are carried."""
    if "num_consts" in params:  # before JAX 0.12
        return params["num_consts"], params["num_carry"]
    consts, carried, _ = (len(list(part)) for part in params["ft_in"].unpack())
    return consts, carried


def evaluate(jaxpr: Any, args: Sequence[Any], edits: Sequence[Edit], mesh: Mesh) -> list[Any]:
    """Evaluate a jaxpr with edits; under `jax.jit` this traces the changed program."""
    return _Evaluation(mesh).run(jaxpr, args, tuple(edits))


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
            return self.mapped(eqn, operands, below)
        if below:
            params = params | self.changed_inner(eqn, below)
        actions = {e.action: e for e in here}
        if "drop" in actions:
            edit = actions["drop"]
            return [operands[0] if edit.spec is None else self.constrain(operands[0], edit.spec)]
        if "carry" in actions:
            return self.carried(eqn, operands, dict(actions["carry"].pairs))
        if "narrow" in actions:
            return self.narrowed(eqn, operands, params)
        results = eqn.primitive.bind(*operands, **params)
        results = list(results) if eqn.primitive.multiple_results else [results]
        if "constrain" in actions:
            results[0] = self.constrain(results[0], actions["constrain"].spec)
        return results

    def mapped(self, eqn: Any, operands: list, edits: list[Edit]) -> list[Any]:
        """Bind a shard_map with edits inside it."""
        params, (_, _, inner) = eqn.params, inner_jaxprs(eqn)[0]
        own = tuple(replace(e, path=e.path[3:]) for e in edits)
        return jax.shard_map(
            lambda *args: self.run(inner, args, own),
            mesh=params["mesh"],
            in_specs=tuple(params["in_specs"]),
            out_specs=list(params["out_specs"]),
            axis_names=manual_axes(params),
            check_vma=params["check_vma"],
        )(*operands)

    def carried(self, eqn: Any, operands: list, pairs: dict[int, int]) -> list[Any]:
        """Bind a scan that carries some of its inputs and writes them in place."""
        params = eqn.params
        consts, carried = scan_counts(params)
        first = consts + carried
        others = [i for i in range(first, len(operands)) if i not in pairs]

        def body(carry, inputs):
            index, state, caches = carry
            given = dict(zip(others, inputs, strict=True))
            given |= {
                i: lax.dynamic_index_in_dim(c, index, keepdims=False)
                for i, c in zip(pairs, caches, strict=True)
            }
            rest = [given[i] for i in range(first, len(operands))]
            results = self.run(params["jaxpr"], [*operands[:consts], *state, *rest], ())
            caches = [
                lax.dynamic_update_index_in_dim(c, results[r], index, 0)
                for c, r in zip(caches, pairs.values(), strict=True)
            ]
            step = -1 if params["reverse"] else 1
            stacked = [x for r, x in enumerate(results) if r >= carried and r not in pairs.values()]
            return (index + step, results[:carried], caches), stacked

        start = params["length"] - 1 if params["reverse"] else 0
        carry = (jax.numpy.int32(start), operands[consts:first], [operands[i] for i in pairs])
        (_, state, caches), stacked = lax.scan(
            body, carry, [operands[i] for i in others], length=params["length"],
            reverse=params["reverse"],
        )  # fmt: skip
        results, rest = [*state], iter(stacked)
        written = dict(zip(pairs.values(), caches, strict=True))
        for position in range(carried, len(eqn.outvars)):
            results.append(written[position] if position in written else next(rest))
        return results

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
            own = tuple(replace(e, path=e.path[3:]) for e in edits if e.path[1:3] == prefix)
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
        explicit = AxisType.Explicit in self.mesh.axis_types
        structs = []
        for a in avals:
            if _varies(a):
                raise NotImplementedError("a change in a loop or call inside jax.shard_map")
            options: dict[str, Any] = {}
            if explicit:
                options["sharding"] = NamedSharding(self.mesh, a.sharding.spec)
            weak = getattr(a, "weak_type", False)
            structs.append(jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=weak, **options))
        made = jax.make_jaxpr(lambda *args: self.run(jaxpr, args, edits))(*structs)
        is_open = hasattr(jaxpr, "eqns") and not hasattr(made, "eqns")
        return made.jaxpr if is_open else made


def _varies(aval: Any) -> bool:
    """Return whether an array inside `jax.shard_map` has its own values on each device."""
    kind = getattr(aval, "manual_axis_type", getattr(aval, "mat", None))
    return bool(getattr(kind, "varying", None) or getattr(aval, "vma", None))
