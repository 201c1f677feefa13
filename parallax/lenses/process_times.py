"""The clocks of all processes: steps that begin together, and the slowest process of each step."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallax.distributed.agreement import gather
from parallax.distributed.processes import hosts, process_count
from parallax.lenses.intervals import confidence_interval
from parallax.results.lens_results import ProcessTime


def together_on(mesh: Mesh) -> Callable[[], Any]:
    """Return a call that lets all processes leave it at about the same moment.

    It sums one number per device over the whole mesh, so that the clocks of the step after it start
    some microseconds apart, not a store's answer apart. With one process it does nothing.
    """
    if process_count() == 1:
        return lambda: None
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    ones = jax.make_array_from_callback(
        (mesh.size,), everywhere, lambda index: np.ones(mesh.size, np.float32)[index]
    )
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    return lambda: jax.block_until_ready(total(ones))


def of_all_processes(what: str, samples: Sequence[float]) -> list[list[float]]:
    """Return every process's samples, in order of processes; all of them have to call it."""
    return [json.loads(text) for text in gather(what, json.dumps(list(samples)))]


def slowest_samples(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the longest of the processes' times in each step: it is over when all are done."""
    return [max(step) for step in zip(*rows, strict=True)]


def process_times(rows: Sequence[Sequence[float]]) -> tuple[ProcessTime, ...]:
    """Return each process's mean time; () for one process. All of them have to call it."""
    if len(rows) == 1:
        return ()
    return tuple(
        ProcessTime(process, host, confidence_interval(list(row)))
        for process, (host, row) in enumerate(zip(hosts(), rows, strict=True))
    )
