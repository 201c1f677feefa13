"""The compile and predict lenses for any JAX function."""

from collections.abc import Callable, Mapping
from typing import Any

from parallax.cost import Rates
from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.compiling import check_devices
from parallax.lenses.compiling import compile_for as _compile_for
from parallax.lenses.environment import compile_environment, missing_compiler
from parallax.lenses.predicting import predict as _predict
from parallax.meshes.cluster import Cluster
from parallax.meshes.cluster import cluster as find_cluster
from parallax.meshes.mesh import MeshSpec
from parallax.results.lens_results import Compilation, Prediction
from parallax.workload import Workload


def compile_for(
    cluster: str | Cluster,
    fn: Callable[..., Any],
    *shapes: Any,
    mesh: MeshSpec | Mapping[str, int] | str,
    in_specs: Any = None,
    manual: bool = False,
    out_specs: Any = None,
    on_progress: Progress = lambda line: None,
) -> Compilation:
    """Compile any JAX function for a cluster, without a GPU, and read the program.

    Args:
      cluster: a name or a Cluster with as many devices as the mesh.
      fn: called with arrays of these shapes. It travels to a child process (cloudpickle).
      shapes: a pytree of `jax.ShapeDtypeStruct` (or arrays) for each argument.
      mesh: mesh axis -> size, such as {"data": 16} or "data=2,tensor=8".
      in_specs: a PartitionSpec (or pytree of them) for each argument; None replicates all.
      manual: wraps `fn` in one `jax.shard_map` over all mesh axes with in_specs and out_specs;
        otherwise XLA partitions it from in_specs.
      out_specs: of the shard_map; only with manual.

    Returns:
      A Compilation: memory, ledger, FLOPs, timeline. There is no closed form to compare it with.

    Raises:
      ValueError: the mesh is not of the cluster's size, or the specs do not match the shapes.
      ModuleNotFoundError: the compiler is not installed; says how to get it.

    Example:
      compiled = px.compile_for("h100_2x8", f, x, w, mesh={"data": 16}, in_specs=(P("data"), P()))
    """
    target = find_cluster(cluster) if isinstance(cluster, str) else cluster
    spec = _mesh(mesh)
    check_devices(target, spec)
    if manual != (out_specs is not None):
        raise ValueError("compile_for: out_specs and manual=True go together. Give both or none.")
    specs = (None,) * len(shapes) if in_specs is None else tuple(in_specs)
    if len(specs) != len(shapes):
        raise ValueError(
            f"compile_for: {len(specs)} in_specs for {len(shapes)} arguments. Give one for each."
        )
    if missing := missing_compiler():
        raise ModuleNotFoundError(missing)
    return run_in_child(
        _compile, target, fn, shapes, spec, specs, out_specs,
        environment=compile_environment(), on_progress=on_progress,
    )  # fmt: skip


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


def _mesh(mesh: MeshSpec | Mapping[str, int] | str) -> MeshSpec:
    if isinstance(mesh, MeshSpec):
        return mesh
    return MeshSpec.parse(mesh) if isinstance(mesh, str) else MeshSpec(mesh)


def _compile(cluster, fn, shapes, spec, in_specs, out_specs, *, on_progress) -> Compilation:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    def arguments(mesh):
        def with_shardings(specs, tree):
            whole = PartitionSpec() if specs is None else specs
            if isinstance(whole, PartitionSpec):
                return jax.tree.map(lambda x: _struct(x, NamedSharding(mesh, whole)), tree)
            return jax.tree.map(lambda x, s: _struct(x, NamedSharding(mesh, s)), tree, whole)

        return tuple(with_shardings(s, x) for s, x in zip(in_specs, shapes, strict=True))

    def function(mesh):
        if out_specs is None:
            return fn
        whole = tuple(PartitionSpec() if s is None else s for s in in_specs)
        return jax.shard_map(fn, mesh=mesh, in_specs=whole, out_specs=out_specs)

    return _compile_for(cluster, function, arguments, spec, workload=Workload(1, 1),
                        on_progress=on_progress)  # fmt: skip


def _struct(x, sharding):
    import jax

    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
