"""The placement of a model's layers on a cluster under a budget: greedy beside optimal."""

import dataclasses
from collections.abc import Sequence

from parallax.meshes.cluster import Cluster
from parallax.meshes.cluster import cluster as find_cluster
from parallax.models.config import ModelConfig
from parallax.models.parameters import layer_matrices
from parallax.papers.footprints import footprint_rows, layer_of, storable
from parallax.papers.paper import Paper
from parallax.papers.results import PlacedRow, PlacementFacts
from parallax.placement import (
    Budget,
    Device,
    GroupVerdict,
    greedy,
    optimal,
    parse_budget,
    verdicts,
)
from parallax.workload import Workload

# "hbm" is the usable memory of a device; "hbm+kv" counts the batch's KV cache as well.
_IN_MEMORY = ("hbm", "hbm+kv")
BUDGETS = ("l2", "smem", "l2+smem", *_IN_MEMORY)


def placement_facts(
    of: Paper | ModelConfig,
    budget: str | None = None,
    cluster: str | Cluster | None = None,
    *,
    workload: Workload | None = None,
) -> PlacementFacts:
    """Work out a layer's footprint, and the placement of layers under a budget.

    Args:
      of: a paper, with its workload and figures, or any model.
      budget: budget per device: l2, smem, l2+smem, hbm, hbm+kv or bytes; None is each of BUDGETS.
      cluster: a name or a Cluster; None is the paper's, or h100_2x8.
      workload: workload of a ModelConfig; None counts weights alone.

    Raises:
      ValueError: the budget or the cluster is not known.

    Cost: milliseconds.
    """
    paper = of if isinstance(of, Paper) else None
    config = of.config if isinstance(of, Paper) else of
    work = paper.workload if paper and workload is None else workload
    name = cluster or (paper.cluster if paper else "h100_2x8")
    machine = find_cluster(name) if isinstance(name, str) else name
    if budget is not None:
        check_budget(budget, machine)
    asked = BUDGETS if budget is None else (budget,)
    if work is None:
        if budget in _IN_MEMORY:
            raise ValueError(
                f"placement_facts: budget {budget!r} counts activations and keys and values. Give "
                "workload=."
            )
        asked = tuple(b for b in asked if b not in _IN_MEMORY)
    stored = storable(config)
    placed = tuple(_placed(config, work, b, f, machine) for b in asked for f in stored)
    rows = footprint_rows(config, work, paper)
    return PlacementFacts(config.name, machine.name, machine.devices, work, rows, placed)


def check_budget(budget: str, where: Cluster) -> None:
    """Raise ValueError unless a budget is one of BUDGETS or a positive number of bytes."""
    if budget not in BUDGETS:
        parse_budget(budget, where.gpu)


def _placed(
    config: ModelConfig, work: Workload | None, asked: str, formats: tuple[str, str], on: Cluster
) -> PlacedRow:
    in_memory = asked in _IN_MEMORY
    if in_memory:
        share = f"{on.usable_fraction:g} of {on.gpu.name}'s memory"
        budget, counted = Budget(on.usable_bytes, share), "weights, a microbatch's activations"
        counted += ", the batch's keys and values" if asked == "hbm+kv" else ""
    else:
        budget, counted = parse_budget(asked, on.gpu), "weights alone"
    layer = layer_of(config, work if in_memory else None, formats, kv=asked == "hbm+kv")
    # Activations count once, as the layers of a device reuse the same memory.
    once, layer = layer.activations, dataclasses.replace(layer, activations=0)
    layers, room = [layer] * config.num_layers, max(0, budget.n_bytes - once)
    made: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
    groups = even_groups(config.num_layers, on.devices)
    fits = layer.total <= room
    if fits:
        devices = [Device(float(room))] * on.devices
        sizes, costs = [float(layer.total)] * len(layers), [1.0] * len(layers)
        try:
            groups = greedy(sizes, costs, devices).groups
            best = optimal(sizes, costs, devices).groups
            made = tuple(map(len, groups)), tuple(map(len, best))
        except ValueError:  # each layer fits, but not all of them together
            pass
    judged = verdicts(config, layers, groups, [room] * len(groups))
    largest = max(judged, key=lambda v: v.n_bytes)
    largest = dataclasses.replace(largest, n_bytes=largest.n_bytes + once, budget=budget.n_bytes)
    why_not = "layers are left over" if fits else "one layer is larger than the budget"
    weights_room = room - (largest.n_bytes - once) + len(largest.layers) * layer.weights
    return PlacedRow(
        asked, budget, formats, counted, largest, made[0], made[1],
        "" if made[0] else why_not,
        _bits_to_fit(config, weights_room, largest),
    )  # fmt: skip


def _bits_to_fit(config: ModelConfig, room: float, group: GroupVerdict) -> float:
    """Return the bits per weight at which the group's matrices take all the room for them."""
    weights = len(group.layers) * sum(m.size for m in layer_matrices(config))
    return max(0.0, 8 * room / weights)


def even_groups(layers: int, devices: int) -> Sequence[range]:
    """Split contiguous layers evenly over devices; with few layers the last devices have none."""
    stops = [round(layers * (i + 1) / devices) for i in range(devices)]
    if layers < devices:
        stops = [min(i + 1, layers) for i in range(devices)]
    return [range(a, b) for a, b in zip([0, *stops], stops, strict=False)]
