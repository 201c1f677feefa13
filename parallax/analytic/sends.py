"""The transfers of the analytical model as collectives between devices, for cost estimation."""

import functools
import itertools
import math

import numpy as np

from parallax.bounds import Transfer, wire_bytes
from parallax.hlo.collectives import Collective
from parallax.hlo.execution_trace import Send
from parallax.meshes.mesh import MeshSpec

_LARGE = 64


@functools.lru_cache(maxsize=4096)
def groups_over(mesh: MeshSpec, axes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the positions of the devices that communicate along mesh axes, group by group.

    For a large mesh with a power of two of devices that is the first group alone, as all are alike.
    """
    names = mesh.names
    positions = np.arange(mesh.size).reshape(mesh.shape)
    order = [i for i, n in enumerate(names) if n not in axes]
    order += [i for i, n in enumerate(names) if n in axes]
    size = math.prod(mesh[a] for a in axes)
    groups = positions.transpose(order).reshape(-1, size)
    if mesh.size > _LARGE and not mesh.size & (mesh.size - 1):
        groups = groups[:1]
    return tuple(tuple(row) for row in groups.tolist())


@functools.lru_cache(maxsize=4096)
def _pairs(groups: tuple[tuple[int, ...], ...], wraps: bool) -> tuple[tuple[int, int], ...]:
    hops = tuple(p for g in groups for p in itertools.pairwise(g))
    return hops + (tuple((g[-1], g[0]) for g in groups) if wraps else ())


def one_send(transfer: Transfer, mesh: MeshSpec) -> Send:
    """Make the send of one execution of a transfer."""
    groups = groups_over(mesh, transfer.axes)
    n, each = len(groups[0]), transfer.wire_bytes / max(1, transfer.count)
    pairs: tuple[tuple[int, int], ...] = ()
    if transfer.kind == "collective-permute":
        # A pipeline does not wrap around; rings do.
        pairs, groups = _pairs(groups, wraps=transfer.role != "stage_handoff"), ()
    unit = wire_bytes(transfer.kind, n, 1.0)
    return Send(
        transfer.what,
        Collective(
            kind=transfer.kind, axes=transfer.axes, group_size=n,
            payload_bytes=int(each / unit) if unit else 0, wire_bytes=each, count=1, dtype="",
            op_name=transfer.what, pairs=pairs, groups=groups, name=transfer.what,
        ),
    )  # fmt: skip
