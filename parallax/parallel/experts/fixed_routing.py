"""The fixed routing, which is the same under every strategy, and its costs.

Plain NumPy: nothing here is traced. Shapes: T tokens, E experts, k choices per token, P devices.
"""

import math

import numpy as np

_BLOCK_TOKENS = 1 << 18  # keeps the random numbers of millions of tokens out of memory


def fixed_expert_ids(
    kind: str, tokens: int, num_experts: int, top_k: int, seed: int = 0, layer: int = 0
) -> np.ndarray:
    """Return fixed choices for a layer's tokens, [T, k] int32, k distinct experts each.

    Args:
      kind: "uniform": every expert equally often in each aligned block of E / gcd(E, k) tokens; or
        "lognormal:SIGMA": experts with popularity exp(SIGMA z) for normal z, drawn for each layer.
      tokens: T.
      num_experts: E.
      top_k: k.
      seed, layer: equal values give equal choices.

    Raises:
      ValueError: an unknown kind, or more choices than experts.
    """
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"fixed_expert_ids: {top_k} choices of {num_experts} experts. Use fewer.")
    random = np.random.default_rng([seed, layer])
    if kind == "uniform":
        return _uniform(random, tokens, num_experts, top_k)
    name, _, number = kind.partition(":")
    try:
        sigma = float(number)
    except ValueError:
        sigma = math.nan
    if name != "lognormal" or not 0 <= sigma < math.inf:
        raise ValueError(
            f"fixed_expert_ids: unknown kind {kind!r}, expected 'uniform' or 'lognormal:SIGMA' "
            "with SIGMA >= 0, for example 'lognormal:0.5'."
        )
    return _lognormal(random, tokens, num_experts, top_k, sigma)


def _uniform(random: np.random.Generator, tokens: int, experts: int, k: int) -> np.ndarray:
    period = experts // math.gcd(experts, k)
    pattern = (np.arange(period * k) % experts).reshape(period, k)
    blocks = -(-tokens // period)
    step = max(1, _BLOCK_TOKENS // experts)
    parts = []
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        renamed = random.permuted(np.tile(np.arange(experts), (count, 1)), axis=1)
        parts.append(renamed[:, pattern].reshape(-1, k))
    return np.concatenate(parts or [np.zeros((0, k))])[:tokens].astype(np.int32)


def _lognormal(
    random: np.random.Generator, tokens: int, experts: int, k: int, sigma: float
) -> np.ndarray:
    logits = sigma * random.standard_normal(experts)
    parts = []
    for first in range(0, tokens, _BLOCK_TOKENS):
        count = min(_BLOCK_TOKENS, tokens - first)
        # The k largest logits plus Gumbel noise are k draws without replacement.
        noisy = logits + random.gumbel(size=(count, experts))
        parts.append(np.argsort(-noisy, axis=1)[:, :k])
    return np.concatenate(parts or [np.zeros((0, k))]).astype(np.int32)


def load_per_expert(ids_Tk: np.ndarray, num_experts: int) -> np.ndarray:
    """Return the number of choices of each expert, [E]; -1 is no choice."""
    ids = np.asarray(ids_Tk).reshape(-1)
    return np.bincount(ids[ids >= 0], minlength=num_experts)


def max_over_mean(load_E: np.ndarray) -> float:
    """Return the largest load over the mean load; 1 is balanced."""
    return float(np.max(load_E) / np.mean(load_E))


def expert_flop_utilisation(load_CE: np.ndarray, devices: int, tile: int) -> float:
    """Return the needed rows over the rows that devices in lock-step have time to compute.

    Args:
      load_CE: [E], or [calls, E]: rows for each expert in each grouped MLP that devices run at once
        (a chunk of a microbatch in a layer).
      devices: P; each has E / P consecutive experts.
      tile: rows per tile; an expert's rows are computed in whole tiles.

    Returns:
      A number above 0, at most 1. It falls with partly filled tiles and with waiting for the
      device with the largest load.
    """
    load = np.atleast_2d(load_CE)
    executed = -(-load // tile) * tile
    slowest = executed.reshape(len(load), devices, -1).sum(axis=2).max(axis=1)
    return float(load.sum() / (devices * slowest.sum()))


def rows_between(ids_Tk: np.ndarray, num_experts: int, devices: int) -> np.ndarray:
    """Return the rows from each device to each, [P, P]: one per choice, its own included.

    Args:
      ids_Tk: [T, k] for all devices' tokens, in contiguous equal pieces; -1 is no choice.
      num_experts: E, in contiguous equal pieces.
      devices: P.

    Raises:
      ValueError: devices that do not divide experts and tokens.
    """
    ids, home = _with_homes(ids_Tk, num_experts, devices)
    pairs = home * devices + ids // (num_experts // devices)
    counts = np.bincount(pairs[ids >= 0], minlength=devices**2)
    return counts.reshape(devices, devices)


def rows_to_nodes(ids_Tk: np.ndarray, num_experts: int, nodes: int, devices: int) -> np.ndarray:
    """Return the number of tokens of each device that need each node, [P, nodes].

    A token counts once per node, however many of its experts are there. Args are as in
    `rows_between`; devices are numbered node by node.

    Raises:
      ValueError: devices that do not divide experts and tokens.
    """
    ids, home = _with_homes(ids_Tk, num_experts, devices)
    node = np.where(ids < 0, -1, ids // (num_experts // nodes))
    needs = (node[:, :, None] == np.arange(nodes)).any(axis=1)
    counts = np.zeros((devices, nodes), np.int64)
    np.add.at(counts, home[:, 0], needs.astype(np.int64))
    return counts


def rows_to_other_devices(ids_Tk: np.ndarray, num_experts: int, devices: int) -> np.ndarray:
    """Return the rows that each device sends, [P]: one per choice on another device."""
    rows = rows_between(ids_Tk, num_experts, devices)
    return rows.sum(axis=1) - np.diag(rows)


def rows_to_other_nodes(
    ids_Tk: np.ndarray, num_experts: int, nodes: int, devices: int
) -> np.ndarray:
    """Return the rows that each device sends to other nodes, [P], at most one per token each."""
    rows = rows_to_nodes(ids_Tk, num_experts, nodes, devices)
    own = np.arange(devices) // (devices // nodes)
    return rows.sum(axis=1) - rows[np.arange(devices), own]


def _with_homes(ids_Tk: np.ndarray, num_experts: int, devices: int) -> tuple[np.ndarray, ...]:
    """Return (choices, the device of each choice's token), both [T, k]."""
    ids = np.asarray(ids_Tk)
    tokens = len(ids)
    if num_experts % devices or tokens % devices:
        raise ValueError(
            f"{devices} devices do not divide {num_experts} experts and {tokens} tokens. Use a "
            "number that divides both."
        )
    home = np.arange(tokens)[:, None] // (tokens // devices)
    return ids, np.broadcast_to(home, ids.shape)
