"""The time of a collective: NVLink switches within a node, one network card per GPU between nodes.

Within a node t = start + traffic / rate + a term that saturates with size. Between nodes the model
assumes hierarchical algorithms: reduce-scatter within nodes, all-reduce of a share between them,
all-gather within nodes. No published measurement of two nodes validates those ("unvalidated");
`parallax calibrate --distributed` measures them where the nodes are.
"""

from parallax.bounds import wire_bytes
from parallax.cost.links import devices_per_node, pair_links
from parallax.cost.rates import LinkRates, Rates
from parallax.hlo.collectives import Collective
from parallax.meshes.cluster import Cluster

# The names under which rates are fitted; a ragged all-to-all takes those of the dense one.
_NAMES = {"ragged-all-to-all": "all-to-all", "collective-permute": "p2p"}
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
    network = rates.network(kind)
    if kind == "all-to-all":
        between = network.start_s + size * (n - inside) / n / network.bytes_per_s
        local = _within(kind, size / nodes, inside, rates) if inside > 1 else 0.0
        return max(between, local)
    share = size / inside
    between = network.start_s * _rounds(nodes)
    between += wire_bytes(kind, nodes, share) / network.bytes_per_s
    if inside == 1:
        return between
    if kind == "all-reduce":
        local = _within("reduce-scatter", size, inside, rates)
        local += _within("all-gather", size, inside, rates)
    else:
        local = _within(kind, size, inside, rates)
    return local + between


def _rounds(nodes: int) -> int:
    """Return the number of consecutive messages: the depth of a tree over the nodes."""
    return max(1, (nodes - 1).bit_length())


def _within(kind: str, size: float, n: int, rates: Rates) -> float:
    return kind_seconds(rates.links[kind], kind, size, n)


def kind_seconds(link: LinkRates, kind: str, size: float, n: int) -> float:
    """Evaluate the fitted time of a collective of a kind ("p2p" is one message) within a node.

    Args:
      link: the rates fitted to that kind.
      kind, size: as `exchange_seconds` takes them; "p2p" for one message.
      n: devices of the group.
    """
    traffic = size if kind == "p2p" else wire_bytes(kind, n, size)
    return link_seconds(link, traffic, size, n)


def link_seconds(link: LinkRates, traffic: float, size: float, n: int) -> float:
    """Evaluate the fitted time of a collective within a node, see `LinkRates`."""
    others = n - 1
    moving = traffic / link.bytes_per_s * (1 + link.few / others)
    more = link.extra_s * size / (size + link.half_bytes)
    return link.start_s + link.step_s * others + moving + more


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
