"""Small scheduled modules by hand."""

from typing import Any

from parallax.hlo import parse_module, read_ledger
from parallax.hlo.read_trace import read_trace


def computation(name, signature, *lines, entry=False):
    body = "".join(f"  {line}\n" for line in lines)
    return f"{'ENTRY ' if entry else ''}%{name} {signature} {{\n{body}}}\n\n"


def module(*computations, devices=1):
    head = f"HloModule m, is_scheduled=true, num_partitions={devices}\n\n"
    return parse_module(head + "".join(computations))


def work(*computations, devices=1, trips=None) -> Any:
    made = module(*computations, devices=devices)
    axes = {"x": devices} if devices > 1 else {}
    return read_trace(made, read_ledger(made, axes, trips=trips), trips)
