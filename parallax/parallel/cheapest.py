"""The estimated cost of one attention call at a cluster's peak rates, which "auto" compares."""

from parallax.bounds import Transfer
from parallax.meshes.cluster import Cluster, cluster
from parallax.parallel.attention_part import AttentionPart, AttentionShape, Sizes, size_over

_DTYPES = {2: "bfloat16", 4: "float32", 8: "float64"}


def seconds(part: AttentionPart, shape: AttentionShape, sizes: Sizes, cluster_name: str) -> float:
    """Return the seconds of a forward call of `part`: FLOPs at peak plus transfers, no overlap.

    Args:
      part: a part with a closed form for this shape.
      shape: sizes of the call.
      sizes: all mesh axes in mesh order; devices are placed row-major, as `MeshSpec` says.
      cluster_name: the cluster whose rates count.
    """
    devices = cluster(cluster_name)
    transfers = part.transfers(shape, sizes, 1)
    network = sum(t.wire_bytes / link_bytes_per_s(devices, t, sizes) for t in transfers)
    peak = devices.gpu.peak_flops(_DTYPES[shape.item_bytes])
    return network + part.work(shape, sizes).flops / peak


def link_bytes_per_s(devices: Cluster, moved: Transfer, sizes: Sizes) -> float:
    """Return the peak rate of the slowest link inside any group of the transfer's mesh axes.

    A group lies in a run of consecutive devices whose length is the product of its major axis and
    all axes after it. It stays inside a node if such runs divide the node evenly.
    """
    names = list(sizes)
    first = min(names.index(axis) for axis in moved.axes)
    run = size_over(sizes, tuple(names[first:]))
    is_inside = devices.gpus_per_node % run == 0
    return devices.gpu.nvlink_bytes_per_s if is_inside else devices.nic_bytes_per_s
