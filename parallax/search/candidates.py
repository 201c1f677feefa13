"""The candidates: every legal way that registered strategies split a model over a cluster."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.strategies import STRATEGIES, hybrid
from parallax.strategies.named import sized
from parallax.strategies.slots import SLOTS, Share, Sizes, Slot
from parallax.strategy import Strategy

# Meshes of more devices have too many factorisations to try all of them: where two strategies split
# the same thing, only the better one is then tried.
ALL_UP_TO = 64


def candidates(config: ModelConfig, cluster: Cluster, batch: int) -> Iterator[Strategy]:
    """Yield the strategies whose meshes have the cluster's devices; sizes may still not divide.

    The number of devices is factorised over the slots in every way, and each slot is filled in all
    ways that the entries of STRATEGIES name for it (`Named.slots`).

    Args:
      config: the model: no more stages than layers, no more tensor shards than heads.
      cluster: number of devices, and of devices per node.
      batch: sequences: no more data shards than that.
    """
    most: dict[Slot, int] = {
        "data": batch,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "sequence": cluster.devices,
        "experts": config.num_experts or 1,
    }
    for factors in _factors(cluster.devices, len(SLOTS)):
        devices = dict(zip(SLOTS, factors, strict=True))
        if any(n > most[slot] for slot, n in devices.items()):
            continue
        if most["experts"] % devices["experts"]:
            continue
        yield from _combined(config, cluster, devices)


@functools.lru_cache(maxsize=64)
def _factors(n: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Return the ordered factorisations of n into `parts` factors."""
    if parts == 1:
        return ((n,),)
    return tuple((f, *rest) for f in range(1, n + 1) if n % f == 0
                 for rest in _factors(n // f, parts - 1))  # fmt: skip


def _combined(
    config: ModelConfig, cluster: Cluster, devices: Mapping[Slot, int]
) -> Iterator[Strategy]:
    used: list[Slot] = [slot for slot in SLOTS if devices[slot] > 1]
    for chosen in itertools.product(*(_ways(config, cluster, devices, slot) for slot in used)):
        sizes: dict[str, Sizes] = {} if chosen else {"data_parallel": {}}
        for name, of_slot in chosen:  # one strategy may fill several slots
            sizes[name] = {**sizes.get(name, {}), **of_slot}
        try:
            parts = [sized(name, of_all, cluster.name) for name, of_all in sizes.items()]
            yield parts[0] if len(parts) == 1 else hybrid(*parts)
        except ValueError:
            continue  # parts that exclude each other: two orders of the layers, two expert axes


def _ways(
    config: ModelConfig, cluster: Cluster, devices: Mapping[Slot, int], slot: Slot
) -> Sequence[tuple[str, Sizes]]:
    """Return the names of strategies that can fill a slot, each with sizes of its mesh axes."""
    inner = SLOTS[SLOTS.index(slot) + 1 :]  # devices between neighbours along the slot
    apart = math.prod(devices[other] for other in inner)
    share = Share(
        devices[slot],
        max(1, cluster.gpus_per_node // apart),
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        all_ways=cluster.devices <= ALL_UP_TO,
    )
    return [
        (name, sizes)
        for name, named in STRATEGIES.items()
        if slot in named.slots
        for sizes in named.slots[slot](share)
    ]
