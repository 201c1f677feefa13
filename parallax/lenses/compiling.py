"""The compile lens: compiles the real CUDA program for a cluster, without a GPU, and reads it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parallax.bounds import Transfer
from parallax.cost.estimating import KERNEL_EFFICIENCY
from parallax.cost.links import all_link_bytes
from parallax.hlo.branches import Trips
from parallax.hlo.caveats import branch_caveats, open_caveats, trips_caveats
from parallax.hlo.compare import Totals, differing_totals
from parallax.hlo.copies import copied_bytes
from parallax.hlo.declared import declared_kernels
from parallax.hlo.flops import module_flops, uncounted_calls
from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.hlo.ledger import read_ledger
from parallax.hlo.module import Module
from parallax.hlo.parse import parse_module
from parallax.hlo.ragged import RaggedBytes
from parallax.hlo.read_trace import read_trace
from parallax.hlo.shapes import HloError
from parallax.hlo.trip_counts import unused_trips
from parallax.kernels import dispatch
from parallax.lenses.child import Progress
from parallax.lenses.compiled_text import compile_text
from parallax.lenses.lowering import lower, missing_libraries
from parallax.lenses.timeline import busiest_timeline
from parallax.meshes.cluster import Cluster, of_size
from parallax.meshes.mesh import MeshSpec
from parallax.meshes.topology import topology_devices
from parallax.programs.load_balance import LoadBalance
from parallax.results.lens_results import Compilation, Difference, Memory
from parallax.workload import Workload

# Device memory assumed for a compilation of which only the collectives are read: large enough that
# XLA never rematerialises, which would duplicate them.
AMPLE_BYTES = 1 << 50
# Without a GPU nothing is autotuned, and XLA falls back to its own kernels for every matrix
# product. On a GPU the autotuner times both and mostly chooses the library's for large products.
# Those read a layer's weights in place in their stack; XLA's own need them copied out first.
LIBRARY_GEMMS = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_disable_hlo_passes": "cublas-pad-for-gemms",
}
_DISABLED = "xla_disable_hlo_passes"
# Constants that take less of a device's memory are not worth a note.
_WORTH_SAYING = 0.1
ATTENTION_SCOPE = "attention_core"


def compile_for(
    cluster: Cluster,
    function: Callable[[Any], Callable],
    shapes: Callable[[Any], tuple],
    mesh: MeshSpec,
    *,
    workload: Workload,
    phase: str = "prefill",
    transfers: tuple[Transfer, ...] | None = None,
    kv_cache_bytes: float = 0.0,
    weight_bytes: float | None = None,
    partitioner: str = "the function's own",
    donate: tuple[int, ...] = (),
    compiler_options: Mapping[str, bool | int | str] | None = None,
    trips: Trips | None = None,
    ragged_bytes: RaggedBytes | None = None,
    load_balance: LoadBalance | None = None,
    notes: Sequence[str] = (),
    on_progress: Progress = lambda line: None,
) -> Compilation:
    """Compile a function of whole arrays for a cluster and read the program; run it in a child.

    Args:
      cluster: the GPUs to compile for, which need not exist; as many devices as the mesh has.
      function: called as function(mesh), returns the function to jit.
      shapes: called as shapes(mesh), returns the arguments as ShapeDtypeStructs with shardings.
      mesh: mesh axes and their sizes.
      workload: what one call runs, for the report.
      phase: "prefill", "decode" or "train", for the report.
      transfers: the closed form that the ledger is checked against; None if there is none.
      kv_cache_bytes: KV cache per device, in bytes: read by a decoding step, or what a prefill
        could keep.
      weight_bytes: weight bytes per device that one call reads from memory; None counts every
        parameter once.
      partitioner: who chose the collectives, in one line.
      donate: positions of the arguments whose memory the results may reuse.
      notes: further notes of the caller, for the result.
      compiler_options: XLA options; a note in the result names them.
      load_balance: load balance of the strategy, for the report.
      trips, ragged_bytes: trip counts and bytes that depend on routed tokens, see
        `parallax.hlo.read_ledger`.

    Raises:
      ValueError: the mesh and the cluster differ in their number of devices.
    """
    import jax

    start, axes = time.perf_counter(), dict(mesh.axes)
    traced, _, arguments, refused = trace_function(cluster, function, shapes, mesh, donate)
    parameters = jax.tree.leaves(_parameters(arguments[0]))
    found = compile_lowered(
        cluster, lower(traced), axes, parameter_bytes=sum(map(_local_bytes, parameters)),
        weights=_matrices(arguments[0]) if phase == "decode" else (), options=compiler_options,
        trips=trips, ragged_bytes=ragged_bytes, notes=(*notes, *refused),
        on_progress=on_progress,
    )  # fmt: skip
    differences: tuple[Difference, ...] = ()
    if transfers is not None:
        ledger = found.ledger.by_kind_and_axes()
        written = jaxpr_ledger(
            traced.jaxpr, axes, ragged_bytes=ragged_bytes, trips=trips
        ).by_kind_and_axes()
        differences = (
            *_differences("closed form", _by_kind(transfers), ledger),
            *_differences("jaxpr", written, ledger),
        )
    return replace(
        found,
        workload=workload,
        phase=phase,
        transfers=transfers or (),
        has_closed_form=transfers is not None,
        differences=differences,
        weight_bytes=float(found.memory.parameter_bytes if weight_bytes is None else weight_bytes),
        kv_cache_bytes=kv_cache_bytes,
        partitioner=partitioner,
        seconds=time.perf_counter() - start,
        evenness=load_balance,
    )


def trace_function(
    cluster: Cluster,
    function: Callable[[Any], Callable],
    shapes: Callable[[Any], tuple],
    mesh: MeshSpec,
    donate: tuple[int, ...] = (),
) -> tuple[Any, Any, tuple, list[str]]:
    """Trace a function of whole arrays for a cluster.

    Args:
      cluster, function, shapes, mesh, donate: as for `compile_for`.

    Returns:
      The `jax.stages.Traced` program, its mesh, its arguments, and why kernels were refused.

    Raises:
      ValueError: the mesh and the cluster differ in their number of devices.
    """
    import jax

    check_devices(cluster, dict(mesh.axes))
    built = mesh.build(topology_devices(cluster)[: mesh.size])
    arguments = shapes(built)
    with dispatch.refusals() as refused, missing_libraries():
        traced = jax.jit(function(built), donate_argnums=donate).trace(*arguments)
    return traced, built, arguments, sorted(refused)


def compile_lowered(
    cluster: Cluster,
    lowered: Any,
    axes: Mapping[str, int],
    *,
    parameter_bytes: int = 0,
    weights: Sequence[int] = (),
    options: Mapping[str, bool | int | str] | None = None,
    trips: Trips | None = None,
    ragged_bytes: RaggedBytes | None = None,
    notes: Sequence[str] = (),
    check_trips: bool = False,
    on_progress: Progress = lambda line: None,
) -> Compilation:
    """Compile a lowered program of any function for a cluster and read it, in this process.

    Args:
      cluster: the GPUs to compile for, which need not exist.
      lowered: a `jax.stages.Lowered` for CUDA.
      axes: mesh axis -> size, in the order of the program's devices.
      parameter_bytes: bytes of parameters per device, for the report.
      weights: positions of the arrays, among all of the arguments, whose copies a note counts.
      options, trips, ragged_bytes, notes: as for `compile_for`.
      check_trips: whether a note names what is in `trips` and counts no loop.
    """
    start = time.perf_counter()
    options = dict(options or {})
    # Where parameters alone do not fit, one compile shows all: no schedule would change that.
    fits_never = parameter_bytes > cluster.gpu.memory_bytes * cluster.usable_fraction
    room = AMPLE_BYTES if fits_never else None
    compiled = compile_text(lowered, compile_options(options), cluster, room)
    memory = Memory(
        argument_bytes=compiled.argument_bytes,
        output_bytes=compiled.output_bytes,
        temp_bytes=compiled.temp_bytes,
        alias_bytes=compiled.alias_bytes,
        parameter_bytes=parameter_bytes,
        capacity_bytes=cluster.gpu.memory_bytes,
        usable_fraction=cluster.usable_fraction,
        constant_bytes=compiled.constant_bytes,
    )
    said = [f"compiled with {name}={value}; a run needs it too" for name, value in options.items()]
    if fits_never:
        said.append("compiled with ample memory: the parameters alone do not fit")
    elif not memory.fits:
        on_progress("does not fit: compiling again with ample memory to read the collectives")
        said.append("collectives are read from a compile with ample memory: this one does not fit")
        compiled = compile_text(lowered, compile_options(options), cluster, AMPLE_BYTES)
    module = parse_module(compiled.text)
    ledger = read_ledger(module, axes, ragged_bytes=ragged_bytes, trips=trips)
    flops = module_flops(module, trips=trips)
    work, unpriced = None, ""
    try:
        work = read_trace(module, ledger, trips)
    except HloError as error:
        unpriced = str(error)
    if copied := copied_bytes(module, _kept(lowered, weights), trips):
        said.append(f"weights copied in a step: {copied:,.0f} bytes per device, and read again")
    said += branch_caveats(ledger, flops)
    said += open_caveats(flops.open | set(ledger.open_loops))
    said += trips_caveats(unused_trips(module, trips) if check_trips else ())
    said += notes
    said += _rematerialized(module, compiled.warnings)
    if any("fallback sort" in warning for warning in compiled.warnings):
        said.append("sorts are compiled as XLA's own: on a GPU it takes the library's, faster ones")
    if memory.constant_bytes > _WORTH_SAYING * memory.total_bytes:
        said.append(
            f"constants, which the function closes over, take {memory.constant_bytes:,} bytes on "
            "every device; pass them as arguments to split them"
        )
    if kernels := declared_kernels(module):
        said.append(
            f"kernels written by hand: {', '.join(kernels)}; FLOPs and bytes as they declare, at "
            f"{KERNEL_EFFICIENCY:.0%} of the rate of products (assumed: no GPU has run them)"
        )
    for target in uncounted_calls(module):
        said.append(f"FLOPs of custom call {target!r} are not counted")
    return Compilation(
        cluster=cluster.name,
        mesh=",".join(f"{name}={size}" for name, size in axes.items()) or "single",
        workload=Workload(1, 1),
        phase="call",
        memory=memory,
        collectives=tuple(ledger),
        transfers=(),
        has_closed_form=False,
        differences=(),
        gemm_flops=flops.high,
        attention_flops=module_flops(module, ATTENTION_SCOPE, trips).high,
        weight_bytes=0.0,
        kv_cache_bytes=0.0,
        partitioner="the function's own",
        timeline=busiest_timeline(module, ledger, cluster, trips),
        seconds=time.perf_counter() - start,
        notes=tuple(said),
        flop_imbalance=flops.high / ((flops.low + flops.high) / 2) if flops.high else 1.0,
        link_bytes=all_link_bytes(ledger.taken, cluster),
        work=work,
        unpriced=unpriced,
    )


def _rematerialized(module: Module, warnings: Sequence[str]) -> list[str]:
    """Say how many full rematerializations XLA warned of, and where the first is."""
    found = [w for w in warnings if "Involuntary full rematerialization" in w]
    if not found:
        return []
    frames = module.sources.frames_of(found[0])
    first = f", first at {frames[0].file}:{frames[0].line}" if frames else ""
    return [
        f"XLA warns of {len(found)} involuntary full rematerializations (an array is made whole on "
        f"every device on the way between two splits){first}; px.explain shows ways around"
    ]


def compile_options(options: Mapping[str, bool | int | str]) -> dict[str, bool | int | str]:
    """Return the options of a compile for an absent GPU, of a program that needs these to run."""
    disabled = [str(x[_DISABLED]) for x in (LIBRARY_GEMMS, options) if _DISABLED in x]
    return {**LIBRARY_GEMMS, **options, _DISABLED: ",".join(disabled)}


def check_devices(cluster: Cluster, axes: Mapping[str, int]) -> None:
    """Raise ValueError unless a mesh of these axes has as many devices as the cluster."""
    size = math.prod(axes.values())
    if size != cluster.devices:
        mesh = ",".join(f"{name}={n}" for name, n in axes.items()) or "single"
        named = of_size(cluster, size)
        other = f", or use a cluster of {size}, for example {named}" if named else ""
        raise ValueError(
            f"mesh {mesh} has {size} devices, cluster {cluster.name} has {cluster.devices}. "
            f"Change the mesh{other}."
        )


def _kept(lowered: Any, arguments: Sequence[int]) -> list[int]:
    """Return the numbers of a program's parameters that are these arrays of its arguments."""
    kept = sorted(lowered._lowering.compile_args["kept_var_idx"])  # unused ones are dropped
    return [number for number, argument in enumerate(kept) if argument in arguments]


def _matrices(state: Any) -> list[int]:
    """Return the positions of a model's matrices and tables among its arrays: no norms, biases."""
    import jax
    from flax import nnx

    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return [n for n, x in enumerate(leaves)
            if not isinstance(x, nnx.Param) or "inputs" in x.get_metadata()]  # fmt: skip


def _parameters(first: Any) -> Any:
    """Return the parameters in a first argument; a training step's also has optimizer state."""
    return getattr(first, "params", first)


def _local_bytes(x) -> int:
    local = x.sharding.shard_shape(x.shape)
    size = x.dtype.itemsize
    for dim in local:
        size *= dim
    return size


def _by_kind(transfers: Sequence[Transfer]) -> dict[tuple[str, tuple[str, ...] | None], float]:
    totals: dict[tuple[str, tuple[str, ...] | None], float] = {}
    for t in transfers:
        totals[t.kind, t.axes] = totals.get((t.kind, t.axes), 0.0) + t.wire_bytes
    return totals


def _differences(witness: str, expected: Totals, found: Totals) -> list[Difference]:
    return [
        Difference(kind, axes or (), a, b, witness)
        for kind, axes, a, b in differing_totals(expected, found)
    ]
