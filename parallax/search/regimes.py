"""The regime maps: which strategy wins where, over two axes, by the analytical model."""

from collections.abc import Callable, Mapping, Sequence

from parallax.analytic import estimate, estimate_bytes
from parallax.cost import Rates, rates_for
from parallax.meshes.cluster import Cluster, scaled
from parallax.models.config import ModelConfig
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import Prefill
from parallax.search.results import Point, RegimeMap
from parallax.strategies import STRATEGIES, build
from parallax.strategy import Strategy
from parallax.workload import Workload

_LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
_BATCHES = (1, 4, 16, 64, 256, 1024)
_WIDTHS = (1024, 2048, 4096, 8192, 16_384)
_DEVICES = (2, 4, 8, 16, 32, 64)
_EXPERTS = (16, 32, 64, 128)
_SKEWS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


def regime_maps(
    config: ModelConfig, cluster: Cluster, batch: int, seq_len: int, rates: Rates | None = None,
    kernels: str | None = None,
) -> tuple[RegimeMap, ...]:  # fmt: skip
    """Map the fastest strategy around one workload.

    The axes are length x batch, width x devices and, with experts, experts x skew. `kernels` are as
    in `Strategy`.

    Cost: milliseconds per point and strategy.
    """
    rates = rates_for(cluster, rates)

    def at(model: ModelConfig, on: Cluster, b: int, length: int, skew: float = 1.0):
        return _seconds(model, on, b, length, rates, skew, kernels)

    maps = [
        _map("sequence length", "batch", f"{config.name} on {cluster.name}", _LENGTHS, _BATCHES,
             lambda x, y: at(config, cluster, int(y), int(x))),
        _map("width", "devices", f"{batch} x {seq_len} tokens, heads and MLP as wide as the model",
             _WIDTHS, _DEVICES,
             lambda x, y: at(_as_wide(config, int(x)), scaled(cluster, int(y)), batch, seq_len)),
    ]  # fmt: skip
    if config.num_experts:
        maps.append(_map(
            "experts", "busiest expert / mean", f"{batch} x {seq_len} tokens on {cluster.name}",
            _EXPERTS, _SKEWS,
            lambda x, y: at(config.replace(num_experts=int(x)), cluster, batch, seq_len, y),
        ))  # fmt: skip
    return tuple(maps)


def _map(
    x: str, y: str, constant: str, xs: Sequence[float], ys: Sequence[float],
    seconds: Callable[[float, float], Mapping[str, float]],
) -> RegimeMap:  # fmt: skip
    return RegimeMap(x, y, constant, tuple(Point(a, b, seconds(a, b)) for a in xs for b in ys))


def _as_wide(config: ModelConfig, width: int) -> ModelConfig:
    """Return the model at another width, with heads of the same width."""
    share = width / config.d_model
    heads = max(1, round(config.num_heads * share))
    kv_heads = next(g for g in range(max(1, round(config.num_kv_heads * share)), 0, -1)
                    if heads % g == 0)  # fmt: skip
    return config.replace(
        d_model=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        d_ff=max(1, round(config.d_ff * share)),
    )


def _seconds(
    config: ModelConfig, cluster: Cluster, batch: int, seq_len: int, rates: Rates, skew: float,
    kernels: str | None = None,
) -> dict[str, float]:  # fmt: skip
    seconds = {}
    # Strategies that cannot run on the cluster are left out.
    for name in (name for name, named in STRATEGIES.items() if not named.variant_of):
        try:
            strategy = build(name, devices=cluster.devices, node_size=cluster.gpus_per_node,
                             cluster=cluster.name).replace(kernels=kernels)  # fmt: skip
            best = _best(config, strategy, cluster, batch, seq_len, rates, skew)
        except (ValueError, NotImplementedError):
            continue
        if best is not None:
            seconds[name] = best
    return seconds


def _best(
    config: ModelConfig, strategy: Strategy, cluster: Cluster, batch: int, seq_len: int,
    rates: Rates, skew: float,
) -> float | None:  # fmt: skip
    local = batch // strategy.split().count("act_batch")
    stages = strategy.split().count("layers")
    best = None
    for microbatches in (1, stages, 4 * stages, 16 * stages):
        if not local or local % microbatches:
            continue
        workload = Workload(batch, seq_len, microbatches)
        sharded = ShardedTransformer(config, strategy, workload)
        if estimate_bytes(sharded) > cluster.usable_bytes:
            continue
        seconds = estimate(Prefill(sharded), cluster, rates=rates, skew=skew).cost.seconds
        best = seconds if best is None else min(best, seconds)
        if stages == 1:
            break
    return best
