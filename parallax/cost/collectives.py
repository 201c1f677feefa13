"""The time of a collective: NVLink switches within a node, one network card per GPU between nodes.

Both are a start, a protocol's further cost at larger sizes, and bytes over a rate: see `LinkRates`.
Between nodes that is one ring (or tree) over all devices, each card with an equal share: it starts
as a node's and a network's collective do, and moves at the pace of the slower of both. The
constants are a network's own where it is named (`networks`) or calibrated; else generic ones, which
nothing validates.
"""

from parallax.bounds import wire_bytes
from parallax.cost.links import devices_per_node, pair_links
from parallax.cost.rates import LinkRates, Rates
from parallax.hlo.collectives import Collective
from parallax.meshes.cluster import Cluster

# The names under which rates are fitted; a ragged all-to-all takes those of the dense one.
_NAMES = {"ragged-all-to-all": "all-to-all", "collective-permute": "p2p"}
# From so many devices on, NCCL lets NVLink's switches sum.
_SWITCH_DEVICES = 8
# A barrier of a small all-reduce in a CUDA graph: published are 5 us for 8 KB on Hopper, all in.
_ONE_SHOT_START_S = 4.8e-6


def collective_seconds(collective: Collective, cluster: Cluster, rates: Rates) -> float:
    """Estimate the seconds of one execution of a collective."""
    kind = collective.kind
    if kind == "collective-permute":
        kinds = pair_links(collective.pairs, cluster.gpus_per_node)
        size = collective.wire_bytes
        times = [
            send_seconds(rates.links["p2p" if k == "nvlink" else "network"], size) for k in kinds
        ]
        return max(times, default=0.0)
    n = collective.group_size
    per_node = devices_per_node(collective, cluster)
    nodes, inside = len(per_node), min(per_node, default=n)
    name = _NAMES.get(kind, kind)
    if kind == "ragged-all-to-all":
        # Its wire bytes exclude rows that stay; a dense buffer sending as many is n/(n-1) as large.
        size = collective.wire_bytes * n / max(1, n - 1)
    else:
        size = float(collective.payload_bytes)
    return exchange_seconds(name, size, inside, nodes, rates)


def exchange_seconds(kind: str, size: float, inside: int, nodes: int, rates: Rates) -> float:
    """Estimate the seconds of a collective over `inside` devices in each of `nodes` nodes.

    Args:
      kind: "all-reduce", "all-gather", "reduce-scatter" or "all-to-all".
      size: bytes of the full array S (for an all-to-all, of one device's buffer).
      inside, nodes: devices per node, and nodes, of the group.
      rates: cost model constants of the GPU.
    """
    n = inside * nodes
    if n <= 1:
        return 0.0
    if nodes == 1:
        return _within(kind, size, n, rates)
    return between_seconds(rates.network(kind), kind, size, inside, nodes, rates.links[kind])


def between_seconds(
    network: LinkRates, kind: str, size: float, inside: int, nodes: int, node: LinkRates
) -> float:
    """Estimate the seconds of a collective over several nodes.

    Args:
      network: the rates of the kind between nodes.
      kind, size, inside, nodes: as `exchange_seconds` takes them; at least two nodes.
      node: the rates of the kind inside a node.
    """
    rounds, more = (nodes - 1).bit_length(), nodes - 1
    extra = network.extra_s * rounds + network.extra_step_s * more
    start = network.start_s * rounds + network.step_s * more
    start += extra * size / (size + network.half_bytes) + _start_seconds(node, size, inside)
    n = inside * nodes
    if kind == "all-to-all":
        sent = size * (n - inside) / n
        local = moving_seconds(node, kind, size / nodes, inside)
    else:
        sent = wire_bytes(kind, n, size) / inside
        local = moving_seconds(node, kind, size, inside)
        if network.tree and kind == "all-reduce":
            # In the trees of two nodes a sum goes up once; of more, up and down as in a ring.
            sent = min(sent, size / inside * nodes / 2)
    return start + max(local, sent / network.bytes_per_s)


def _within(kind: str, size: float, n: int, rates: Rates) -> float:
    return kind_seconds(rates.links[kind], kind, size, n)


def kind_seconds(link: LinkRates, kind: str, size: float, n: int) -> float:
    """Evaluate the fitted time of a collective of a kind ("p2p" is one message) within a node.

    Args:
      link: the rates fitted to that kind.
      kind, size: as `exchange_seconds` takes them; "p2p" for one message.
      n: devices of the group, at least two.
    """
    return _start_seconds(link, size, n) + moving_seconds(link, kind, size, n)


def _start_seconds(link: LinkRates, size: float, n: int) -> float:
    """Evaluate all but the moving of bytes within a node, 0 for one device."""
    others = n - 1
    if not others:
        return 0.0
    early = link.early_s * size / (size + link.early_half_bytes)
    extra = (link.extra_s + link.extra_step_s * others) * size / (size + link.half_bytes)
    return link.start_s + link.step_s * others + early + extra


def moving_seconds(link: LinkRates, kind: str, size: float, n: int) -> float:
    """Evaluate the seconds that bytes take to move over the links of a node, without any start.

    Args:
      link, kind, size, n: as `kind_seconds` takes them; 0 for one device.
    """
    if n <= 1:
        return 0.0
    sent = size if kind == "p2p" else wire_bytes(kind, n, size)
    ring = sent / link.bytes_per_s * (1 + link.few / (n - 1))
    if kind == "all-reduce" and link.switch_share and n >= _SWITCH_DEVICES:
        return min(ring, size / (link.switch_share * link.bytes_per_s))
    return ring


def send_seconds(link: LinkRates, size: float) -> float:
    """Estimate the seconds of one message to another device."""
    return kind_seconds(link, "p2p", size, 2)


def one_shot_all_reduce_seconds(size: float, n: int, rates: Rates) -> float:
    """Estimate the seconds of the all-reduce of small messages that serving software brings.

    In a CUDA graph, over peer memory within a node: every device reads all others' arrays (one
    shot), or a share of them and then their sums (two shots). NCCL's where that is faster, as for
    large arrays.

    Args:
      size: bytes of the array S.
      n: devices.
      rates: cost model constants of the GPU.
    """
    if n <= 1:
        return 0.0
    rate = rates.links["all-gather"].bytes_per_s
    one_shot = _ONE_SHOT_START_S + (n - 1) * size / rate
    two_shots = 2 * _ONE_SHOT_START_S + wire_bytes("all-reduce", n, size) / rate
    return min(one_shot, two_shots, _within("all-reduce", size, n, rates))
