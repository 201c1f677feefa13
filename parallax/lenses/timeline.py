"""The timeline of the busiest loop body: the compiled order, drawn at the GPU's peak rates."""

from parallax.cost.links import link_seconds
from parallax.hlo.branches import Trips
from parallax.hlo.flops import executions, instruction_flops
from parallax.hlo.ledger import Ledger
from parallax.hlo.module import Computation, Module
from parallax.meshes.cluster import Cluster
from parallax.results.lens_results import TimelineEvent

_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id")

_SENDING = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
            "ragged-all-to-all")  # fmt: skip


def busiest_timeline(
    module: Module, ledger: Ledger, cluster: Cluster, trips: Trips | None = None
) -> tuple[TimelineEvent, ...]:
    """Schedule the loop body that sends the most bytes, or has the most FLOPs if none sends.

    The order is the compiled program's. Durations are modelled: FLOPs at the bfloat16 peak rate
    (too short for wider dtypes), other bytes at peak memory bandwidth, transfers at peak link
    rates. A loop inside the body is one event with the FLOPs of all its iterations; `trips` gives
    trip counts that depend on data (see `module_flops`).
    """
    body = busiest_body(module, trips)
    return () if body is None else timeline_of(body, module, ledger, cluster, trips)


def timeline_of(
    body: Computation, module: Module, ledger: Ledger, cluster: Cluster, trips: Trips | None = None
) -> tuple[TimelineEvent, ...]:
    """Schedule one computation of a module, as `busiest_timeline` does a loop body."""
    by_name = {c.name: c for c in ledger}
    now, wire_free = 0.0, 0.0
    open_until: dict[str, float] = {}
    events = []
    for instruction in body.instructions:
        opcode = instruction.opcode
        if opcode in _FREE:
            continue
        if opcode.endswith("-done"):
            for name in instruction.operands:
                now = max(now, open_until.pop(name, now))
            continue
        collective = by_name.get(instruction.name)
        if collective is not None:
            start = max(now, wire_free)
            stop = start + link_seconds(collective, cluster)
            events.append(TimelineEvent(instruction.name, "communication", start, stop))
            wire_free = stop
            if opcode.endswith("-start"):
                open_until[instruction.name] = stop
            else:
                now = stop
            continue
        flops = instruction_flops(module, body, instruction, trips=trips).high
        seconds = flops / cluster.gpu.peak_flops("bfloat16")
        if not flops and opcode != "while":
            seconds = 2 * instruction.shape.n_bytes / cluster.gpu.hbm_bytes_per_s
        name = instruction.name if not flops else f"GEMM {instruction.name}"
        events.append(TimelineEvent(name, "compute", now, now + seconds))
        now += seconds
    return tuple(events)


def busiest_body(module: Module, trips: Trips | None = None) -> Computation | None:
    """Return the loop body that sends the most bytes, or has the most FLOPs; None without any."""
    best: tuple[tuple[float, float], Computation] | None = None
    for computation, count, _, _ in executions(module, trips):
        if computation.name == module.entry or count <= 0:
            continue
        own, sent = 0.0, 0.0
        for instruction in computation.instructions:
            if instruction.opcode.removesuffix("-start") in _SENDING:
                sent += instruction.shape.n_bytes
            elif instruction.opcode != "while":
                own += instruction_flops(module, computation, instruction, trips=trips).high
        has_fusions = any(i.opcode == "fusion" for i in computation.instructions)
        if len(computation.instructions) > 1 and has_fusions:
            key = (sent * count, own * count)
            if best is None or key > best[0]:
                best = key, computation
    return best[1] if best else None
