"""A lowered program as a flat call of its jaxpr, which can be changed and compiled again."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallax.explanations.edits import Edit, evaluate
from parallax.lenses.lowering import lower
from parallax.lenses.user_arguments import moved_sharding
from parallax.lenses.user_function import UserProgram


@dataclass(frozen=True)
class FlatProgram:
    """A program as a function of flat arguments.

    Attributes:
      jaxpr: the traced program, differentiated where the user's function is.
      mesh: the mesh it was traced under.
      consts: captured values, which come before the arguments.
      args: abstract arguments with the shardings they are compiled with; without one where XLA
        chooses.
      names: the user's name of each argument, such as "params['w']".
      donated: whether the memory of each argument may be reused.
      out_shardings: the sharding of each result; None where XLA chooses.
      kept: positions of the arguments that the compiled program has, in its order.
    """

    jaxpr: Any
    mesh: Mesh
    consts: tuple[Any, ...]
    args: tuple[Any, ...]
    names: tuple[str, ...]
    donated: tuple[bool, ...]
    out_shardings: tuple[Any, ...]
    kept: tuple[int, ...]

    @property
    def invars(self) -> list[Any]:
        """The variables of the arguments, without those of captured values."""
        return list(self.jaxpr.invars)[len(self.consts) :]

    def spec(self, position: int) -> tuple[Any, ...] | None:
        """Return an argument's entry per dim; None where XLA chooses."""
        sharding, shape = self.args[position].sharding, self.args[position].shape
        if sharding is None:
            return None
        entries = tuple(sharding.spec)
        return entries + (None,) * (len(shape) - len(entries))


def flat_program(program: UserProgram) -> FlatProgram:
    """Return the flat program of what was lowered."""
    traced, arguments = program.traced, program.lowered._lowering.compile_args
    params = traced._params
    jaxpr = params["jaxpr"]
    consts = tuple(getattr(traced, "_consts", ()))
    avals = [v.aval for v in jaxpr.invars][len(consts) :]
    kept = sorted(arguments["kept_var_idx"])
    shardings = dict(zip(kept, arguments["in_shardings"], strict=True))
    structs = tuple(
        jax.ShapeDtypeStruct(
            a.shape, a.dtype, weak_type=getattr(a, "weak_type", False),
            sharding=_named(shardings.get(i + len(consts)), program.mesh),
        )
        for i, a in enumerate(avals)
    )  # fmt: skip
    named = jaxpr.debug_info.safe_arg_names(len(jaxpr.invars))
    names = tuple(str(name) for name in named)[len(consts) :]
    return FlatProgram(
        jaxpr, program.mesh, consts, structs, names,
        tuple(params["donated_invars"])[len(consts) :],
        tuple(_named(s, program.mesh) for s in params["out_shardings"]),
        tuple(i - len(consts) for i in kept),
    )  # fmt: skip


def _named(sharding: Any, mesh: Mesh) -> NamedSharding | None:
    if not isinstance(sharding, NamedSharding):
        return None
    return moved_sharding(sharding, mesh)


def _split_as(sharding: Any, spec: PartitionSpec, mesh: Mesh) -> NamedSharding:
    """Return a sharding by another spec, in the memory that the array was in."""
    kind = getattr(sharding, "memory_kind", None)
    return moved_sharding(NamedSharding(mesh.abstract_mesh, spec, memory_kind=kind), mesh)


def with_specs(
    flat: FlatProgram, specs: dict[int, PartitionSpec], results: dict[int, PartitionSpec]
) -> FlatProgram:
    """Return the program with other shardings of some arguments and results."""

    def moved(x, spec):
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, weak_type=x.weak_type,
            sharding=_split_as(x.sharding, spec, flat.mesh),
        )  # fmt: skip

    args = tuple(moved(x, specs[i]) if i in specs else x for i, x in enumerate(flat.args))
    out = tuple(
        _split_as(s, results[i], flat.mesh) if i in results else s
        for i, s in enumerate(flat.out_shardings)
    )
    return dataclasses.replace(flat, args=args, out_shardings=out)


def lower_flat(flat: FlatProgram, edits: Sequence[Edit] = ()) -> Any:
    """Lower a flat program for CUDA, its jaxpr changed by edits."""

    def run(*args):
        return evaluate(flat.jaxpr, (*flat.consts, *args), edits, flat.mesh)

    donated = tuple(i for i, d in enumerate(flat.donated) if d)
    with jax.set_mesh(flat.mesh):
        jitted = jax.jit(run, donate_argnums=donated, out_shardings=list(flat.out_shardings))
        return lower(jitted.trace(*flat.args))
