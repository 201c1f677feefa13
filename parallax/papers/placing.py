"""A model's layers on a cluster under a budget: greedy beside optimal, and by how much not."""

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

# "hbm" is what a program may take of a device's memory; with "+kv" the batch's cache is in it.
_IN_MEMORY = ("hbm", "hbm+kv")
BUDGETS = ("l2", "smem", "l2+smem", *_IN_MEMORY)


def placement_facts(
    of: Paper | ModelConfig,
    budget: str | None = None,
    cluster: str | Cluster | None = None,
    *,
    workload: Workload | None = None,
) -> PlacementFacts:
    """What a layer takes, and which layers go where under a budget.

    Args:
      of: a paper, with its workload and figures, or any model.
      budget: of a device: l2, smem, l2+smem, hbm, hbm+kv or bytes; None is each of BUDGETS.
      cluster: a name or a Cluster; None is the paper's, or h100_2x8.
      workload: of a ModelConfig; None counts weights alone.

    Raises:
      ValueError: a budget that is none of these, a cluster nobody knows.

    Cost: milliseconds.
    """
    paper = of if isinstance(of, Paper) else None
    config = of.config if isinstance(of, Paper) else of
    work = paper.workload if paper and workload is None else workload
    name = cluster or (paper.cluster if paper else "h100_2x8")
    where = find_cluster(name) if isinstance(name, str) else name
    if budget is not None:
        check_budget(budget, where)
    asked = BUDGETS if budget is None else (budget,)
    if work is None:
        if budget in _IN_MEMORY:
            raise ValueError(
                f"placement_facts: budget {budget!r} counts activations and keys and values. Give "
                "workload=."
            )
        asked = tuple(b for b in asked if b not in _IN_MEMORY)
    stored = storable(config)
    placed = tuple(_placed(config, work, b, f, where) for b in asked for f in stored)
    rows = footprint_rows(config, work, paper)
    return PlacementFacts(config.name, where.name, where.devices, work, rows, placed)


def check_budget(budget: str, where: Cluster) -> None:
    """ValueError unless it is one of BUDGETS or bytes, more than none."""
    if budget not in BUDGETS:
        parse_budget(budget, where.gpu)


def _placed(
    config: ModelConfig, work: Workload | None, asked: str, formats: tuple[str, str], where: Cluster
) -> PlacedRow:
    in_memory = asked in _IN_MEMORY
    if in_memory:
        share = f"{where.usable_fraction:g} of {where.gpu.name}'s memory"
        budget, counted = Budget(where.usable_bytes, share), "weights, a microbatch's activations"
        counted += ", the batch's keys and values" if asked == "hbm+kv" else ""
    else:
        budget, counted = parse_budget(asked, where.gpu), "weights alone"
    layer = layer_of(config, work if in_memory else None, formats, kv=asked == "hbm+kv")
    # Activations are there once: layers of a device use the same room one after the other.
    once, layer = layer.activations, dataclasses.replace(layer, activations=0)
    layers, room = [layer] * config.num_layers, max(0, budget.n_bytes - once)
    made: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
    groups = even_groups(config.num_layers, where.devices)
    fits = layer.total <= room
    if fits:
        devices = [Device(float(room))] * where.devices
        sizes, costs = [float(layer.total)] * len(layers), [1.0] * len(layers)
        try:
            groups = greedy(sizes, costs, devices).groups
            best = optimal(sizes, costs, devices).groups
            made = tuple(map(len, groups)), tuple(map(len, best))
        except ValueError:  # every layer fits, all of them do not
            pass
    found = verdicts(config, layers, groups, [room] * len(groups))
    largest = max(found, key=lambda v: v.n_bytes)
    largest = dataclasses.replace(largest, n_bytes=largest.n_bytes + once, budget=budget.n_bytes)
    why_not = "layers are left over" if fits else "one layer is larger than the budget"
    weights_room = room - (largest.n_bytes - once) + len(largest.layers) * layer.weights
    return PlacedRow(
        asked, budget, formats, counted, largest, made[0], made[1],
        "" if made[0] else why_not,
        _bits_to_fit(config, weights_room, largest),
    )  # fmt: skip


def _bits_to_fit(config: ModelConfig, room: float, group: GroupVerdict) -> float:
    """Bits a weight of the group's matrices if they take all the room there is for them."""
    weights = len(group.layers) * sum(m.size for m in layer_matrices(config))
    return max(0.0, 8 * room / weights)


def even_groups(layers: int, devices: int) -> Sequence[range]:
    """Contiguous layers dealt out evenly; the last devices have none where there are few."""
    stops = [round(layers * (i + 1) / devices) for i in range(devices)]
    if layers < devices:
        stops = [min(i + 1, layers) for i in range(devices)]
    return [range(a, b) for a, b in zip([0, *stops], stops, strict=False)]
