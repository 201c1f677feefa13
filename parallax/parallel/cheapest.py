"""What one attention call costs at a cluster's peak rates: what `auto` compares."""

from parallax.bounds import Transfer
from parallax.meshes.cluster import Cluster, cluster
from parallax.parallel.attention_part import AttentionPart, AttentionShape, Sizes, size_over

_DTYPES = {2: "bfloat16", 4: "float32", 8: "float64"}


def seconds(part: AttentionPart, shape: AttentionShape, sizes: Sizes, cluster_name: str) -> float:
    """Seconds of a forward call of `part`, nothing overlapped: FLOPs at peak, then every transfer.

    Args:
      part: with a closed form for this shape.
      shape: of the call.
      sizes: all mesh axes in mesh order; devices are placed row-major, as `MeshSpec` says.
      cluster_name: whose rates count.
    """
    where = cluster(cluster_name)
    transfers = part.transfers(shape, sizes, 1)
    network = sum(t.wire_bytes / link_bytes_per_s(where, t, sizes) for t in transfers)
    return network + part.work(shape, sizes).flops / where.gpu.peak_flops(_DTYPES[shape.item_bytes])


def link_bytes_per_s(where: Cluster, moved: Transfer, sizes: Sizes) -> float:
    """Peak rate of the slowest link inside any group of the transfer's mesh axes.

    A group lies in a run of as many positions as its major axis and all after it have: inside a
    node where such runs fill a node.
    """
    names = list(sizes)
    first = min(names.index(axis) for axis in moved.axes)
    run = size_over(sizes, tuple(names[first:]))
    is_inside = where.gpus_per_node % run == 0
    return where.gpu.nvlink_bytes_per_s if is_inside else where.nic_bytes_per_s
