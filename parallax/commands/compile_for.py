"""The compile and predict lenses for any JAX function."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parallax.cost import Rates
from parallax.lenses.child import Progress
from parallax.lenses.environment import missing_compiler
from parallax.lenses.predicting import predict as _predict
from parallax.meshes.cluster import Cluster
from parallax.meshes.cluster import cluster as find_cluster
from parallax.results.lens_results import Compilation, Prediction

if TYPE_CHECKING:
    from parallax.lenses.user_function import UserProgram


def compile_for(
    cluster: str | Cluster,
    fn: Callable[..., Any],
    *args: Any,
    mesh: Any = None,
    in_specs: Any = None,
    out_shardings: Any = None,
    donate: int | Sequence[int] = (),
    manual: bool = False,
    out_specs: Any = None,
    trips: Mapping[str, float] | None = None,
    on_progress: Progress = lambda line: None,
) -> Compilation:
    """Compile any JAX function for a cluster, without a GPU, and read the program.

    The program is the one that `jax.jit(fn)` makes on that cluster under `jax.set_mesh`: the
    function is traced and lowered in this process. Only the devices need not exist.

    Args:
      cluster: a name or a Cluster with as many devices as the mesh.
      fn: a function, or what `jax.jit` made of one: its donation, static arguments and shardings
        hold. Flax and Equinox modules may be arguments, or be called in it.
      args: its arguments: pytrees of `jax.ShapeDtypeStruct`, arrays or numbers. Shardings that they
        have are kept, also those over virtual CPU devices. Leaves that are no arrays (an activation
        function in a module) are held fixed.
      mesh: mesh axis -> size, such as {"data": 16} or "data=2,model=8", with any names; or a
        `jax.sharding.Mesh` or `AbstractMesh`, whose axis types then hold. None takes the mesh of
        the arguments' shardings, or of `jax.set_mesh`.
      in_specs: for each argument a PartitionSpec, a NamedSharding or None (replicated), or a prefix
        tree of them; one PartitionSpec alone is that of all arguments. None keeps the arguments'
        own shardings; those without are left to XLA.
      out_shardings: of the results, as in `jax.jit`; None leaves them to XLA.
      donate: positions of arguments whose memory the results may reuse, as `donate_argnums`.
      manual: wraps `fn` in one `jax.shard_map` over all mesh axes with in_specs and out_specs;
        otherwise XLA partitions it.
      out_specs: of the shard_map; without manual the same as out_shardings.
      trips: named scope -> iterations of a loop that stops on data, see `px.inspect_text`.

    Returns:
      A Compilation: memory, ledger, FLOPs, timeline. There is no closed form to compare it with.

    Raises:
      ValueError: the mesh is not of the cluster's size, or the specs do not match the arguments;
        the message names the argument.
      ModuleNotFoundError: the compiler is not installed; says how to get it.

    Example:
      compiled = px.compile_for("h100_2x8", f, x, w, mesh={"data": 16}, in_specs=(P("data"), P()))
    """
    from parallax.lenses.compiling import compile_lowered

    target = find_cluster(cluster) if isinstance(cluster, str) else cluster
    program = lowered_call(
        "compile_for", target, fn, args, mesh, in_specs=in_specs, out_shardings=out_shardings,
        donate=donate, manual=manual, out_specs=out_specs,
    )  # fmt: skip
    on_progress(f"compiling for {target.name}")
    return compile_lowered(
        target, program.lowered, program.axes, trips=trips, notes=program.notes,
        check_trips=True, on_progress=on_progress,
    )  # fmt: skip


def lowered_call(
    caller: str,
    cluster: Cluster,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    mesh: Any,
    *,
    in_specs: Any,
    out_shardings: Any,
    donate: int | Sequence[int],
    manual: bool,
    out_specs: Any,
) -> "UserProgram":
    """Lower a call as `compile_for` and `explain` take it; `caller` starts error messages.

    Raises:
      ValueError, ModuleNotFoundError: as `compile_for` says.
    """
    if manual and out_specs is None:
        raise ValueError(f"{caller}: manual=True needs out_specs, as jax.shard_map does.")
    if not manual and out_specs is not None:
        if out_shardings is not None:
            raise ValueError(f"{caller}: out_specs and out_shardings are given. Give one.")
        out_shardings, out_specs = out_specs, None
    if missing := missing_compiler():
        raise ModuleNotFoundError(missing)
    # Only now: a process that never asks for it does not load JAX's tracing.
    from parallax.lenses.user_arguments import spec_per_argument
    from parallax.lenses.user_function import UserCall, lower_call

    call = UserCall(
        fn, args, in_specs=spec_per_argument(in_specs, len(args), caller),
        out_shardings=out_shardings, donate=(donate,) if isinstance(donate, int) else tuple(donate),
        manual_out=out_specs, caller=caller,
    )  # fmt: skip
    return lower_call(call, cluster, mesh)


def predict(
    compilation: Compilation, dtype: str = "bfloat16", *, rates: Rates | None = None
) -> Prediction:
    """Return the modelled time and energy of what `compile_for` returned, beside its roofline.

    Args:
      dtype: the dtype of the roofline's peak rate. The default is the fastest, so the bound holds
        for any other; the prediction itself takes each product's own dtype.
      rates: constants of the GPU, such as `px.Rates.load` reads; None takes those shipped for it.

    Returns:
      A Prediction of one call. The work of a call is not known: its tokens_per_s counts calls.

    Raises:
      ValueError: the cost of the program cannot be estimated; the message says why.
    """
    return _predict(compilation, find_cluster(compilation.cluster), dtype, rates)
