"""User functions, lowered in the process that defines them, as `jax.jit` lowers them.

Names, closures, custom primitives and policies then mean what they mean in the user's program. Only
the devices are others: the program is compiled for a cluster that need not exist.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax._src.sharding import IndivisibleError
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from parallax.lenses.compiling import check_devices
from parallax.lenses.lowering import lower, missing_libraries
from parallax.lenses.user_arguments import (
    Specs,
    abstract_arguments,
    is_abstract,
    is_number,
    mesh_of_arguments,
    on_mesh,
)
from parallax.lenses.user_requests import lost_algorithms, lost_donation
from parallax.lenses.users_errors import users_line
from parallax.meshes.cluster import Cluster
from parallax.meshes.mesh import MeshSpec
from parallax.meshes.topology import topology_devices

# What JAX says of a function that needs axes of type Explicit, and of one that names devices.
_WANTS_EXPLICIT = "of type Auto or Manual"
_OTHER_DEVICES = ("incompatible devices", "should match the mesh passed to shard_map")
# Running an operation on a device that is not there.
_NOTHING_RUNS = "has no attribute 'local_devices'"

MeshLike = MeshSpec | Mapping[str, int] | str | Mesh | AbstractMesh


@dataclass(frozen=True)
class UserProgram:
    """A user's function, lowered.

    Attributes:
      traced, lowered: the `jax.stages.Traced` and `Lowered` program.
      mesh: the mesh it was traced under.
      notes: what a reader of the result must know, in sentences.
    """

    traced: Any
    lowered: Any
    mesh: Mesh
    notes: tuple[str, ...] = ()

    @property
    def axes(self) -> dict[str, int]:
        """The size of each mesh axis, in order."""
        return dict(self.mesh.shape)


@dataclass(frozen=True)
class UserCall:
    """A call of a user's function: arguments, and how they and the results are sharded.

    Attributes:
      fn: the function; one that `jax.jit` made keeps its own options.
      args: positional arguments: pytrees of arrays, abstract or not, and of what `fn` takes.
      in_specs: specs or shardings of each argument, as a prefix tree; None leaves all as they are.
      out_shardings: of the results, as `jax.jit` takes them; None leaves them to XLA.
      donate: positions of arguments whose memory the results may reuse.
      manual_out: with one `jax.shard_map` over all axes: its `out_specs`; None without.
      caller: who was called, for error messages.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    in_specs: Specs | None = None
    out_shardings: Any = None
    donate: tuple[int, ...] = ()
    manual_out: Any = None
    caller: str = "compile_for"


def lower_call(call: UserCall, cluster: Cluster, mesh: MeshLike | None) -> UserProgram:
    """Trace and lower a call in this process, under `jax.set_mesh` of the cluster's mesh.

    Args:
      call: the function, its arguments and their shardings.
      cluster: where it would run.
      mesh: axes and sizes (then of type Auto), or a mesh with its types. None takes the mesh of the
        arguments' own shardings, or that of `jax.set_mesh`.

    Raises:
      ValueError: the mesh is not of the cluster's size, or the arguments do not fit their specs.
      TypeError: an argument that `jax.jit` would refuse.
    """
    given = mesh if mesh is not None else _mesh_in_sight(call, cluster)
    built = built_mesh(given, cluster)
    if isinstance(given, Mesh | AbstractMesh):
        return _lower(call, built)
    try:
        return _lower(call, built)
    except ValueError as error:
        if _WANTS_EXPLICIT in str(error):
            types = (AxisType.Explicit,) * built.devices.ndim
            explicit = Mesh(built.devices, built.axis_names, types)
            return _lower(call, explicit, "mesh axes of type Explicit: the function asks for them")
        if not any(text in str(error) for text in _OTHER_DEVICES):
            raise
        if len(jax.devices()) >= built.size:  # the function's mesh is over devices of this process
            with contextlib.suppress(ValueError):
                return _lower(call, _over_own_devices(built))
        raise ValueError(
            f"{call.caller}: the function itself names devices, and not those of mesh {given}. "
            f"Pass the mesh that it names: {call.caller}(..., mesh=that_mesh)."
        ) from error


def built_mesh(mesh: MeshLike, cluster: Cluster) -> Mesh:
    """Return a mesh over the cluster's devices; one with devices of its own is returned as it is.

    Raises:
      ValueError: the mesh is not of the cluster's size.
    """
    if isinstance(mesh, Mesh | AbstractMesh):
        sizes, types = dict(mesh.shape), mesh.axis_types
    else:
        if not isinstance(mesh, MeshSpec | Mapping | str):
            raise ValueError(
                f"mesh: expected {{axis: size, ...}}, 'axis=size,...', a Mesh or an AbstractMesh, "
                f"got {mesh!r}. Write for example mesh={{'data': {cluster.devices}}}."
            )
        if not isinstance(mesh, MeshSpec):
            mesh = MeshSpec.parse(mesh) if isinstance(mesh, str) else MeshSpec(mesh)
        sizes, types = dict(mesh.axes), (AxisType.Auto,) * len(mesh.axes)
    check_devices(cluster, sizes)
    if isinstance(mesh, Mesh):
        return mesh
    grid = np.array(topology_devices(cluster), dtype=object).reshape(tuple(sizes.values()))
    return Mesh(grid, tuple(sizes), types)


def _over_own_devices(mesh: Mesh) -> Mesh:
    grid = np.array(jax.devices()[: mesh.size], dtype=object).reshape(mesh.devices.shape)
    return Mesh(grid, mesh.axis_names, mesh.axis_types)


def _mesh_in_sight(call: UserCall, cluster: Cluster) -> MeshLike:
    """Return the mesh of the arguments, or of the context."""
    found = mesh_of_arguments(call.args)
    if found is None:
        context = jax.sharding.get_mesh()
        found = context if not context.empty else jax.sharding.get_abstract_mesh()
    if not found.empty:
        return found
    if cluster.devices == 1:
        return {}
    raise ValueError(
        f"{call.caller}: no mesh: give mesh={{axis: size, ...}} of {cluster.devices} devices, or "
        "arguments with shardings of their own (jax.ShapeDtypeStruct(..., sharding=...))."
    )


def _lower(call: UserCall, mesh: Mesh, *notes: str) -> UserProgram:
    specs = call.in_specs
    args = abstract_arguments(call.args, specs, mesh, call.caller)
    fn: Any
    fn, before, named = _bound(call.fn)
    said = list(notes)
    if call.manual_out is not None:
        whole = tuple(PartitionSpec() if s is None else s for s in specs or ())
        fn = jax.shard_map(fn, mesh=mesh, in_specs=whole, out_specs=call.manual_out)
    donate = call.donate
    if _is_filtered(fn):
        donate = donate or _donated_by_filter(fn, len(args))
        fn, args, _ = _without_static(fn.__wrapped__, args, numbers=False)
    is_jitted = hasattr(fn, "trace")
    if not is_jitted:
        fn, args, held = _without_static(fn, args)
        said += held
        options: dict[str, Any] = {"donate_argnums": donate}
        if call.out_shardings is not None:
            options["out_shardings"] = on_mesh(
                call.out_shardings, mesh, f"{call.caller}: out_shardings"
            )
        fn = jax.jit(fn, **options)
    elif donate or call.out_shardings is not None:
        raise ValueError(
            f"{call.caller}: the function was made by jax.jit, and donate= and out_shardings= are "
            "its own to give: jax.jit(fn, donate_argnums=..., out_shardings=...)."
        )
    with jax.set_mesh(mesh), _one_line(call.caller, mesh), missing_libraries():
        traced = fn.trace(*before, *args, **named)
        traced = getattr(traced, "traced", traced)  # nnx.jit keeps JAX's inside its own
        lowered = lower(traced)
    if not is_jitted and not donate:
        said += lost_donation(traced.jaxpr)
    if mesh.size > 1:
        said += lost_algorithms(traced.jaxpr)
    return UserProgram(traced, lowered, mesh, tuple(said))


def _bound(fn: Any) -> tuple[Any, tuple, dict[str, Any]]:
    """Return the function of `jax.jit` in a partial or a method, and what is bound to it."""
    if isinstance(fn, functools.partial) and hasattr(fn.func, "trace"):
        inner, before, named = _bound(fn.func)
        return inner, (*before, *fn.args), {**named, **fn.keywords}
    if isinstance(fn, types.MethodType) and hasattr(fn.__func__, "trace"):
        return fn.__func__, (fn.__self__,), {}
    return fn, (), {}


def _is_filtered(fn: Any) -> bool:
    """Return whether a function is Equinox's `filter_jit`, which takes no abstract arrays."""
    return hasattr(fn, "lower") and not hasattr(fn, "trace") and hasattr(fn, "__wrapped__")


def _donated_by_filter(fn: Any, count: int) -> tuple[int, ...]:
    first = (0,) if getattr(fn, "donate_first", False) else ()
    return first + (tuple(range(1, count)) if getattr(fn, "donate_rest", False) else ())


@contextlib.contextmanager
def _one_line(caller: str, mesh: Mesh) -> Iterator[None]:
    try:
        yield
    except IndivisibleError as error:
        # JAX names the line that traced the function, which is ours.
        what = str(error).partition(" This error occurs at source")[0]
        raise ValueError(f"{caller}: {what}") from error
    except AssertionError as error:
        if str(error) or not (line := users_line(error)):
            raise
        raise ValueError(
            f"{caller}: JAX refuses the operation at {line} without a message. The mesh has axes "
            f"{', '.join(map(str, mesh.shape)) or 'none'}: does the operation name another one?"
        ) from error
    except AttributeError as error:
        if _NOTHING_RUNS not in str(error):
            raise
        raise ValueError(
            "the function runs an operation while it is traced (under "
            "jax.ensure_compile_time_eval, say), and no device of this cluster is here to run it. "
            "Compute it with numpy, or before the call."
        ) from error


def _without_static(
    fn: Callable, args: tuple, numbers: bool = True
) -> tuple[Callable, tuple, list[str]]:
    """Hold leaves that are no arrays (functions, strings) fixed, and numbers too where asked."""

    def is_array(x):
        return is_abstract(x) or (numbers and is_number(x))

    leaves = [jax.tree_util.tree_flatten_with_path(arg)[0] for arg in args]
    odd = [(i, path, x) for i, found in enumerate(leaves) for path, x in found if not is_array(x)]
    if not odd:
        return fn, args, []
    arrays = tuple(jax.tree.map(lambda x: x if is_array(x) else None, arg) for arg in args)

    def with_static(*given):
        merged = (
            jax.tree.map(lambda a, s: s if a is None else a, a, s, is_leaf=lambda x: x is None)
            for a, s in zip(given, args, strict=True)
        )
        # An updated module among the results has its functions too.
        return jax.tree.map(lambda x: x if is_array(x) else None, fn(*merged))

    i, path, x = odd[0]
    kind = type(x).__name__
    note = (
        f"{len(odd)} leaves of the arguments are no arrays and are held fixed, such as the {kind} "
        f"of argument {i}{jax.tree_util.keystr(path)}"
    )
    return with_static, arrays, [note]
