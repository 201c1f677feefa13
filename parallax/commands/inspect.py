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
from parallax.cost import Cost, Rates, error_bar, estimate_cost, joules, rates_of
from parallax.cost.estimating import kernel_costs
from parallax.cost.totals import unvalidated
from parallax.hlo import HloError, Ledger, parse_module, read_ledger
from parallax.hlo.execution_trace import ExecutionTrace
from parallax.hlo.flops import module_flops
from parallax.hlo.read_trace import read_trace
from parallax.meshes.cluster import Cluster, scaled
from parallax.meshes.cluster import cluster as find_cluster
from parallax.meshes.mesh import MeshSpec
from parallax.report import words

_MESH = re.compile(r"mesh\[((?:'[\w]+'=\d{1,9},?)+)\]")
_SHOWN = 14


@dataclass(frozen=True)
class Inspection:
    """The facts read from a program's text.

    Attributes:
      name: the module's name.
      cluster: the GPUs and interconnect of the cost estimate.
      ledger: its collectives.
      work, cost: its kernels, and what one run costs per device.
      rates: the constants of the cost model in use.
      gemm_flops: FLOPs of matrix products per device.
    """

    name: str
    cluster: Cluster
    ledger: Ledger
    work: ExecutionTrace
    cost: Cost
    rates: Rates
    gemm_flops: float

    def kernels(self) -> list[tuple[str, float, float]]:
        """Return the name, executions and total seconds of each kernel, most expensive first."""
        costs = kernel_costs(self.work, self.cluster, self.rates)
        return sorted(((n, c, s) for n, (c, s) in costs.items()), key=lambda row: -row[2])

    @property
    def unvalidated(self) -> str:
        """The part of its time that no published measurement validates; "" if there is none."""
        return unvalidated(self.work, crosses_nodes=self.cost.network_s > 0)

    def table(self) -> RenderableType:
        """Render the inspection for a rich console."""
        low, high = error_bar(self.cost, self.rates)
        head = f"{self.name}: {self.work.devices} devices, estimated for {self.cluster.name}"
        parts: list[RenderableType] = [Text(head, style="bold"), Text()]
        step = words.in_seconds(self.cost.seconds)
        bar = f"{words.in_seconds(low)} to {words.in_seconds(high)}"
        said = " unvalidated" if self.unvalidated else ""
        parts.append(Text(f"one run: {step}{said}, modelled (80 % error bar {bar})"))
        for name, seconds in sorted(self.cost.terms.items(), key=lambda t: -t[1]):
            share = words.percent(seconds / self.cost.seconds)
            parts.append(Text(f"  {name}: {words.in_seconds(seconds)}, {share}"))
        parts.append(Text(f"  communication hidden: {words.in_seconds(self.cost.hidden_s)}"))
        energy = joules(self.cost, self.rates) * self.work.devices
        parts.append(Text(f"{words.in_flops(self.gemm_flops)} of matrix products per device, "
                          f"compiled; {words.digits(energy)} J in all, modelled"))  # fmt: skip
        parts += [Text(), _collectives(self.ledger), Text(), self._kernel_table()]
        parts += [Text(f"of custom call {t!r} only the bytes are estimated", style="yellow")
                  for t in self.work.unpriced]  # fmt: skip
        return Group(*parts)

    def _kernel_table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("kernels, by where they come from", overflow="fold")
        for head in ("times", "modelled", "share"):
            table.add_column(head, justify="right")
        for name, count, seconds in self.kernels()[:_SHOWN]:
            table.add_row(name, f"{count:,.0f}", words.in_seconds(seconds),
                          words.percent(seconds / self.cost.seconds))  # fmt: skip
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; every number has its unit and tag."""
        low, high = error_bar(self.cost, self.rates)

        return {
            "inspection_version": 1, "module": self.name, "devices": self.work.devices,
            "cluster": self.cluster.name, "rates": f"{self.rates.name} {self.rates.version}",
            "step": number(self.cost.seconds, "s", "modelled") | {"low": low, "high": high},
            "unvalidated": self.unvalidated,
            "terms": {n: number(s, "s", "modelled") for n, s in self.cost.terms.items()},
            "hidden": number(self.cost.hidden_s, "s", "modelled"),
            "gemm_flops": number(self.gemm_flops, "FLOP", "compiled"),
            "collectives": [
                {"kind": c.kind, "axes": c.axes, "group_size": c.group_size, "count": c.count,
                 "wire": number(c.wire_bytes, "B", "compiled"), "async": c.is_async}
                for c in self.ledger
            ],
            "kernels": [{"what": n, "count": c, "time": number(s, "s", "modelled")}
                        for n, c, s in self.kernels()],
            "unpriced": list(self.work.unpriced),
        }  # fmt: skip


def inspect_text(
    text: str,
    *,
    cluster: str | Cluster | None = None,
    mesh: str | None = None,
    trips: Mapping[str, float] | None = None,
    rates: Rates | str | Path | None = None,
) -> Inspection:
    """Read a scheduled CUDA module from untrusted text and estimate its cost.

    Args:
      text: `compiled.as_text()`, or an XLA dump after optimizations.
      cluster: GPUs and interconnect; None takes as many H100s as the program has, eight per node.
      mesh: "axis=size,..." in the order of the program's devices; None takes the mesh that its
        replica groups name, or one axis over all devices.
      trips: named scope -> trip count of a loop whose length depends on data.
      rates: constants of the GPU, or a file that `parallax calibrate` wrote.

    Raises:
      ValueError: the text is truncated, hostile or not understood (HloError), or the cluster has
        another size.
    """
    module = parse_module(text)
    devices = module.num_partitions
    ledger = read_ledger(module, _axes(text, mesh, devices), trips=trips)
    work = read_trace(module, ledger, trips)
    base = find_cluster(cluster or "h100_2x8") if not isinstance(cluster, Cluster) else cluster
    if cluster is None:
        base = scaled(base, devices)
    if base.devices != devices:
        raise ValueError(
            f"module {module.name} runs on {devices} devices, cluster {base.name} has "
            f"{base.devices}. Use one of {devices}."
        )
    if isinstance(rates, str | Path):
        rates = Rates.load(rates)
    rates = rates or rates_of(base.gpu.name)
    cost = estimate_cost(work, base, rates)
    counted = (cost.seconds, cost.flops, cost.memory_bytes, cost.link_bytes)
    if not all(map(math.isfinite, counted)):
        raise HloError(
            f"module {module.name}: its time comes to {cost.seconds} s: its loops are too long."
        )
    return Inspection(
        module.name, base, ledger, work, cost, rates, module_flops(module, trips=trips).high
    )


def _axes(text: str, mesh: str | None, devices: int) -> dict[str, int]:
    if mesh is not None:
        return dict(MeshSpec.parse(mesh).axes)
    named = _MESH.search(text)
    if named is not None:
        pairs = (pair.split("=") for pair in named[1].rstrip(",").split(","))
        axes = {name.strip("'"): int(size) for name, size in pairs}
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
        table.add_row(c.kind, over, f"{c.count:,}", words.in_bytes(c.wire_bytes),
                      words.in_bytes(c.total_bytes), "async" if c.is_async else "sync")  # fmt: skip
    return table
