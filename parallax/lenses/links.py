"""Which link a collective crosses, and the least time it can take there."""

from collections.abc import Iterable

from parallax.hlo.ledger import Collective
from parallax.meshes.cluster import Cluster

# Share of the full array S that an n-part exchange between nodes must at least send.
_PARTS = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0}


def link_bytes(collective: Collective, cluster: Cluster) -> dict[str, float]:
    """Bytes one execution puts on the busiest device's NVLink and network card.

    For groups within a node and for permutes these are the ledger's bytes. For groups over several
    nodes they are the least a node-aware algorithm sends: each card carries an equal share.
    """
    size = collective.wire_bytes
    if collective.kind == "collective-permute":
        kinds = {cluster.link_between(a, b) for a, b in collective.pairs if a != b}
        return dict.fromkeys(kinds, size)
    per_node: dict[int, int] = {}
    group = max(collective.groups, key=lambda g: len({cluster.node_of(d) for d in g}), default=())
    for device in group:
        per_node[cluster.node_of(device)] = per_node.get(cluster.node_of(device), 0) + 1
    nodes, inside = len(per_node), min(per_node.values(), default=1)
    if nodes <= 1:
        return {"nvlink": size}
    n, payload = collective.group_size, collective.payload_bytes
    if collective.ragged:  # its bytes are those of rows for others, as many for each of them
        others = n - 1
        return {"nic": size * (n - inside) / others, "nvlink": size * (inside - 1) / others}
    if collective.kind == "all-to-all":
        return {"nic": payload * (n - inside) / n, "nvlink": payload * (inside - 1) / n}
    factor = _PARTS[collective.kind] * payload
    out = {"nic": factor * (nodes - 1) / nodes / inside}
    if inside > 1:
        out["nvlink"] = factor * (inside - 1) / inside
    return out


def all_link_bytes(collectives: Iterable[Collective], cluster: Cluster) -> dict[str, float]:
    """`link_bytes` of a whole program, every execution counted."""
    total = {"nvlink": 0.0, "nic": 0.0}
    for collective in collectives:
        for link, size in link_bytes(collective, cluster).items():
            total[link] += size * collective.count
    return total


def link_seconds(collective: Collective, cluster: Cluster) -> float:
    """Least time of one execution, at peak rates: the slowest link's."""
    rates = {"nvlink": cluster.gpu.nvlink_bytes_per_s, "nic": cluster.nic_bytes_per_s}
    return max((b / rates[k] for k, b in link_bytes(collective, cluster).items()), default=0.0)
