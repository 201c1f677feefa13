"""The microbenchmarks of links: collectives inside nodes, between nodes, and over all devices.

All nodes run their groups at the same time, as a program does: a group between nodes has one device
of each node, and there is one such group per device of a node, so that cards that devices share are
shared here too. A time is that of the slowest process.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from parallax.cost.measurements import MeasuredCollective
from parallax.distributed.devices import node_of, ordered_devices
from parallax.lenses.child import Progress
from parallax.lenses.loop_times import seconds_each
from parallax.lenses.process_times import of_all_processes, slowest_samples

_NODE, _INSIDE = "node", "inside"

type Axes = tuple[str, ...]
type Nodes = Sequence[Sequence[Any]]


def nodes_at_hand() -> list[list[Any]]:
    """Return all processes' devices, those of each host in a list of their own.

    Raises:
      ValueError: the hosts have different numbers of devices.
    """
    nodes: dict[int, list[Any]] = {}
    for device in ordered_devices():
        nodes.setdefault(node_of(device), []).append(device)
    found = list(nodes.values())
    _check_even(found)
    return found


def measure_links(
    gpu: str, sizes: Sequence[int], nodes: Nodes | None = None, *, on_progress: Progress
) -> list[MeasuredCollective]:
    """Time all kinds of collectives, for each kind of group that the devices have.

    Args:
      gpu: name of the GPU, for the rows.
      sizes: bytes, as `MeasuredCollective` counts them; rounded to whole elements per device.
      nodes: the devices of each node, equally many; None takes those of all processes by host.
      on_progress: called with one line per kind of group.

    Returns:
      Rows with nodes=1 (groups inside nodes), then with as many devices as nodes (groups of one
      device per node), then of all devices. A kind of group with one device is left out.

    Raises:
      ValueError: the nodes have different numbers of devices.

    Cost: about 2 s per row, most of it compiling.
    """
    nodes = nodes_at_hand() if nodes is None else nodes
    _check_even(nodes)
    grid = np.array([list(node) for node in nodes], dtype=object)
    mesh = Mesh(grid, (_NODE, _INSIDE), axis_types=(AxisType.Auto,) * 2)
    count, inside = grid.shape
    found: list[MeasuredCollective] = []
    for axes, crossed, name in (
        ((_INSIDE,), 1, "inside nodes"), ((_NODE,), count, "between nodes"),
        ((_NODE, _INSIDE), count, "of all devices"),
    ):  # fmt: skip
        n = mesh.shape[axes[0]] if len(axes) == 1 else count * inside
        if n == 1 or (len(axes) == 2 and 1 in grid.shape):
            continue
        on_progress(f"collectives {name}: {n} devices per group")
        for kind, one in _kinds(axes, n).items():
            for size in sizes:
                moved = max(1, size // 4 // n) * n
                each = _seconds(mesh, axes, one, moved)
                found.append(MeasuredCollective("here", gpu, crossed, n, kind, moved * 4, each))
    return found


def _check_even(nodes: Nodes) -> None:
    sizes = [len(node) for node in nodes]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"calibrate: the nodes have {', '.join(map(str, sizes))} devices, and groups over "
            "nodes need equally many of each. Start all nodes with the same number of GPUs."
        )


def _kinds(axes: Axes, n: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Return the collectives of groups of n devices along `axes`, from a buffer to a buffer."""
    kinds: dict[str, Callable[[jax.Array], jax.Array]] = {
        "all-reduce": lambda x: lax.psum(x, axes),
        "all-gather": lambda x: lax.all_gather(x[: len(x) // n], axes, tiled=True),
        "reduce-scatter": lambda x: jnp.tile(lax.psum_scatter(x, axes, tiled=True), n),
        "all-to-all": lambda x: lax.all_to_all(x.reshape(n, -1), axes, 0, 0).reshape(-1),
    }
    if len(axes) == 1:  # over both axes some messages would stay inside
        ring = [(i, (i + 1) % n) for i in range(n)]
        kinds["p2p"] = lambda x: lax.ppermute(x, axes[0], ring)
    return kinds


def _seconds(mesh: Mesh, axes: Axes, one: Callable[[jax.Array], jax.Array], elements: int) -> float:
    """Time one collective of float32 buffers of `elements` per device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    x = jax.make_array_from_callback(
        (elements,), everywhere, lambda index: np.ones(elements, np.float32)[index]
    )
    run = _repeated(mesh, axes, one)

    def of_slowest(samples: list[float]) -> list[float]:
        return slowest_samples(of_all_processes("the times of a collective", samples))

    return seconds_each(lambda rounds: lambda: run(x, rounds), first=2, of_all=of_slowest)


def _repeated(mesh: Mesh, axes: Axes, one: Callable[[jax.Array], jax.Array]) -> Any:
    """Return the jitted function (buffer, rounds) that runs a collective so many times."""

    @functools.partial(jax.jit, static_argnums=1)
    def run(x, rounds):
        def body(x):
            def step(_, x):
                return lax.pcast(one(x), axes, to="varying") * jnp.float32(0.5)

            return lax.fori_loop(0, rounds, step, lax.pcast(x, axes, to="varying"))

        return jax.shard_map(
            body, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec((_NODE, _INSIDE)),
            check_vma=False,
        )(x)  # fmt: skip

    return run
