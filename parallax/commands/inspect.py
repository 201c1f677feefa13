"""Inspection of any compiled program from its text: ledger, kernels, modelled time."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table, box
from rich.text import Text

from parallax.codec import number
from parallax.cost import Cost, Rates, estimate_cost, joules, known_error_bar, rates_for
from parallax.cost.estimating import kernel_costs
from parallax.cost.totals import unvalidated
from parallax.hlo import HloError, Ledger, parse_module, read_ledger
from parallax.hlo.agreement import check_agreement
from parallax.hlo.caveats import branch_caveats, open_caveats, trips_caveats
from parallax.hlo.execution_trace import ExecutionTrace
from parallax.hlo.flops import Flops, module_flops
from parallax.hlo.module import Module
from parallax.hlo.platform import Platform
from parallax.hlo.read_trace import read_trace
from parallax.hlo.source import unescaped
from parallax.hlo.trip_counts import unused_trips
from parallax.meshes.cluster import Cluster, on_network, scaled
from parallax.meshes.cluster import cluster as find_cluster
from parallax.meshes.mesh import MeshSpec
from parallax.report import words

# Axes may have any name, as in mesh['replica-group'=4,'α'=2].
_AXIS = r"'([^'\n]{1,100})'=(\d{1,9})"
_MESH = re.compile(rf"mesh\[((?:{_AXIS},?)+)\]")
_SHOWN = 14


@dataclass(frozen=True)
class Inspection:
    """The facts read from a program's text.

    Attributes:
      name: the module's name.
      platform: what it was compiled for: "cuda", "cpu", "tpu", or "" where the text does not show.
      cluster: the GPUs and interconnect of the cost estimate.
      devices: number of devices that run it.
      ledger: its collectives.
      timed: its kernels, and what one run costs per device; None where `untimed` says why.
      rates: the constants of the cost model in use.
      flops: FLOPs of matrix products per device; a range where a branch depends on data.
      argument_bytes, result_bytes: bytes of its arguments and results per device.
      untimed: why no time is estimated, in one line; "" if one is.
      unused_trips: the names in `trips` that count no loop.
    """

    name: str
    platform: Platform
    cluster: Cluster
    devices: int
    ledger: Ledger
    timed: tuple[ExecutionTrace, Cost] | None
    rates: Rates
    flops: Flops
    argument_bytes: int
    result_bytes: int
    untimed: str = ""
    unused_trips: tuple[str, ...] = ()

    @property
    def work(self) -> ExecutionTrace:
        """The kernels of the program; ValueError with the reason where it has no time."""
        return self._timed()[0]

    @property
    def cost(self) -> Cost:
        """The cost of one run per device; ValueError with the reason where it has no time."""
        return self._timed()[1]

    def _timed(self) -> tuple[ExecutionTrace, Cost]:
        if self.timed is None:
            raise ValueError(f"module {self.name}: no time: {self.untimed}")
        return self.timed

    @property
    def gemm_flops(self) -> float:
        """The FLOPs of matrix products per device; the larger where a branch depends on data."""
        return self.flops.high

    @property
    def error_bar(self) -> tuple[float | None, float | None]:
        """The 80 % interval of the seconds; None for an end that nothing known bounds."""
        if self.timed is None:
            return None, None
        return known_error_bar(self.cost, self.rates, self.work)

    def kernels(self) -> list[tuple[str, float, float]]:
        """Return the name, executions and total seconds of each kernel, most expensive first."""
        if self.timed is None:
            return []
        costs = kernel_costs(self.work, self.cluster, self.rates)
        return sorted(((n, c, s) for n, (c, s) in costs.items()), key=lambda row: -row[2])

    @property
    def unvalidated(self) -> str:
        """The part of its time that no published measurement validates; "" if there is none."""
        if self.timed is None:
            return ""
        between = self.cost.network_s > 0 and not self.rates.measured_between_nodes
        return unvalidated(self.work, crosses_nodes=between)

    @property
    def notes(self) -> tuple[str, ...]:
        """What its figures leave open, in one line each."""
        timed, unpriced = (), ()
        if self.timed is not None:
            timed, unpriced = self.work.open_loops, self.work.unpriced
        loops = {*self.flops.open, *self.ledger.open_loops, *timed}
        return (
            *branch_caveats(self.ledger, self.flops), *open_caveats(loops, unpriced),
            *trips_caveats(self.unused_trips),
        )  # fmt: skip

    def table(self) -> RenderableType:
        """Render the inspection for a rich console."""
        head = f"{self.name}: {words.counted(self.devices, 'device')}"
        if not self.untimed:
            head += f", estimated for {self.cluster.name}"
        parts: list[RenderableType] = [Text(head, style="bold"), Text(), *self._time()]
        flops, unit = words.in_flops(self.gemm_flops), "per device, compiled"
        if self.flops.low != self.flops.high:
            flops = f"{words.in_flops(self.flops.low)} to {flops}"
        parts.append(Text(f"{flops} of matrix products {unit}"))
        parts.append(Text(f"{words.in_bytes(self.argument_bytes)} of arguments and "
                          f"{words.in_bytes(self.result_bytes)} of results {unit}"))  # fmt: skip
        parts += [Text(), _collectives(self.ledger)]
        if self.timed is not None:
            parts += [Text(), self._kernel_table(self.cost)]
        parts += [Text(note, style="yellow") for note in self.notes]
        return Group(*parts)

    def _time(self) -> list[RenderableType]:
        if self.timed is None:
            return [Text(f"no time: {self.untimed}", style="yellow")]
        low, high = self.error_bar
        step = words.in_seconds(self.cost.seconds)
        bar = "no error bar" if low is None else "80 % error bar "
        if low is not None:
            bar += f"from {words.in_seconds(low)}" if high is None else (
                f"{words.in_seconds(low)} to {words.in_seconds(high)}"
            )  # fmt: skip
        least = "" if high is not None else "at least "
        said = " unvalidated" if self.unvalidated else ""
        lines: list[RenderableType] = [Text(f"one run: {least}{step}{said}, modelled ({bar})")]
        for name, seconds in sorted(self.cost.terms.items(), key=lambda t: -t[1]):
            share = words.percent(seconds / self.cost.seconds)
            lines.append(Text(f"  {name}: {words.in_seconds(seconds)}, {share}"))
        lines.append(Text(f"  communication hidden: {words.in_seconds(self.cost.hidden_s)}"))
        energy = joules(self.cost, self.rates) * self.devices
        return [*lines, Text(f"{words.digits(energy)} J in all, modelled")]

    def _kernel_table(self, cost: Cost) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("kernels, by where they come from", overflow="fold")
        for head in ("times", "modelled", "share"):
            table.add_column(head, justify="right")
        for name, count, seconds in self.kernels()[:_SHOWN]:
            table.add_row(name, f"{count:,.0f}", words.in_seconds(seconds),
                          words.percent(seconds / cost.seconds))  # fmt: skip
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; every number has its unit and tag."""
        (low, high), cost = self.error_bar, None if self.timed is None else self.cost
        return {
            "inspection_version": 1, "module": self.name, "devices": self.devices,
            "platform": self.platform, "untimed": self.untimed, "notes": list(self.notes),
            "cluster": self.cluster.name, "rates": f"{self.rates.name} {self.rates.version}",
            "step": cost and number(cost.seconds, "s", "modelled") | {"low": low, "high": high},
            "unvalidated": self.unvalidated,
            "terms": {n: number(s, "s", "modelled") for n, s in cost.terms.items()} if cost else {},
            "hidden": cost and number(cost.hidden_s, "s", "modelled"),
            "gemm_flops": number(self.gemm_flops, "FLOP", "compiled")
            | {"low": self.flops.low, "high": self.flops.high},
            "arguments": number(self.argument_bytes, "B", "compiled"),
            "results": number(self.result_bytes, "B", "compiled"),
            "collectives": [
                {"kind": c.kind, "axes": c.axes, "group_size": c.group_size, "count": c.count,
                 "low_count": c.low_count, "open_loop": c.open_loop,
                 "wire": number(c.wire_bytes, "B", "compiled"), "async": c.is_async}
                for c in self.ledger
            ],
            "kernels": [{"what": n, "count": c, "time": number(s, "s", "modelled")}
                        for n, c, s in self.kernels()],
            "unpriced": [] if self.timed is None else list(self.work.unpriced),
        }  # fmt: skip


def inspect_text(
    text: str,
    *,
    cluster: str | Cluster | None = None,
    mesh: str | None = None,
    trips: Mapping[str, float] | None = None,
    network: str | None = None,
    rates: Rates | str | Path | None = None,
) -> Inspection:
    """Read a module from untrusted text and, if it is scheduled for a GPU, estimate its cost.

    A module that is not scheduled, or compiled for a CPU or TPU, has its collectives and FLOPs
    counted and no time.

    Args:
      text: `compiled.as_text()`, or an XLA dump, of any JAX version from 0.4 on.
      cluster: GPUs and interconnect; None takes as many H100s as the program has, eight per node.
      mesh: "axis=size,..." in the order of the program's devices; None takes the mesh that its
        replica groups name, or one axis over all devices.
      trips: named scope -> trip count of a loop whose length depends on data. Without it such a
        loop counts once, and the result's `notes` say so.
      network: network between the nodes, by name; None leaves the cluster as it is.
      rates: constants of the GPU, or a file that `parallax calibrate` wrote.

    Raises:
      ValueError: the text is truncated, hostile or not understood (HloError), or the cluster has
        another size.
    """
    module = parse_module(text)
    devices = module.num_partitions
    ledger = read_ledger(module, mesh_axes(text, mesh, devices), trips=trips)
    base = on_network(cluster_of(module, cluster), network)
    rates = rates_for(base, load_rates(rates))
    untimed, timed = why_untimed(module), None
    if untimed:
        check_agreement(module)
    else:
        work = read_trace(module, ledger, trips)
        cost = estimate_cost(work, base, rates)
        check_finite(module, cost)
        timed = work, cost
    entry = module.computation(module.entry).instructions
    return Inspection(
        module.name, module.platform, base, devices, ledger, timed, rates,
        module_flops(module, trips=trips),
        sum(i.shape.n_bytes for i in entry if i.parameter >= 0),
        sum(i.shape.n_bytes for i in entry if i.is_root), untimed, unused_trips(module, trips),
    )  # fmt: skip


def cluster_of(module: Module, cluster: str | Cluster | None) -> Cluster:
    """Return the cluster that a module's cost is estimated for; None takes nodes of eight H100.

    Raises:
      ValueError: the cluster is unknown, or of another size.
    """
    base = find_cluster(cluster or "h100_2x8") if not isinstance(cluster, Cluster) else cluster
    if cluster is None:
        base = scaled(base, module.num_partitions)
    if base.devices != module.num_partitions:
        raise ValueError(
            f"module {module.name} runs on {module.num_partitions} devices, cluster {base.name} "
            f"has {base.devices}. Use one of {module.num_partitions}."
        )
    return base


def load_rates(rates: Rates | str | Path | None) -> Rates | None:
    """Return rates as they were given, or read from the file that was."""
    return Rates.load(rates) if isinstance(rates, str | Path) else rates


def check_finite(module: Module, cost: Cost) -> None:
    """Raise HloError if loops of a module are too long for its cost to be a number."""
    counted = (cost.seconds, cost.flops, cost.memory_bytes, cost.link_bytes)
    if not all(map(math.isfinite, counted)):
        raise HloError(
            f"module {module.name}: its time comes to {cost.seconds} s: its loops are too long."
        )


def why_untimed(module: Module) -> str:
    """Return why a module's time cannot be estimated, in one line; "" if it can."""
    if module.platform in ("cpu", "tpu"):
        return (
            f"this module was compiled for a {module.platform.upper()}, and only GPUs have rates: "
            "its collectives, FLOPs and bytes are as it has them. Compile for a GPU "
            "(px.compile_for needs none)."
        )
    if not module.is_scheduled:
        whole = "" if module.is_partitioned else (
            ", before partitioning too: FLOPs are of whole arrays outside shard_map, and the "
            "partitioner's collectives are yet to come"
        )  # fmt: skip
        return (
            f"this module is a dump from before optimisation and not scheduled{whole}. For the "
            "time give compiled.as_text(), or XLA's *after_optimizations.txt."
        )
    return ""


def mesh_axes(text: str, mesh: str | None, devices: int) -> dict[str, int]:
    """Return the mesh axes that were given, or those that a text names, or one over all devices."""
    if mesh is not None:
        return dict(MeshSpec.parse(mesh).axes)
    named = _MESH.search(text)
    if named is not None:
        axes = {unescaped(name): int(size) for name, size in re.findall(_AXIS, named[1])}
        if math.prod(axes.values()) == devices:
            return axes
    return {"devices": devices} if devices > 1 else {}


def _collectives(ledger: Ledger) -> RenderableType:
    if not len(ledger):
        return Text("no collectives")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("collective", "over"):
        table.add_column(head)
    for head in ("times", "each", "sent per device"):
        table.add_column(head, justify="right")
    table.add_column("")
    for c in sorted(ledger, key=lambda c: -c.total_bytes)[:_SHOWN]:
        over = ",".join(c.axes) if c.axes else f"groups of {c.group_size}"
        times = f"{c.count:,.6g}" if c.low_count == c.count else f"0 to {c.count:,.6g}"
        times += " per iteration" if c.open_loop else ""
        table.add_row(c.kind, over, times, words.in_bytes(c.wire_bytes),
                      words.in_bytes(c.total_bytes), "async" if c.is_async else "sync")  # fmt: skip
    return table
