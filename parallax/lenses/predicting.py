"""The predict lens: the cost model's estimate for a compiled program, with its roofline."""

import math

from parallax.cost import Rates, estimate_cost, joules, known_error_bar, rates_for
from parallax.cost.links import all_link_bytes, crosses_nodes, least_link_bytes
from parallax.cost.totals import unvalidated
from parallax.hlo.caveats import open_caveats
from parallax.meshes.cluster import Cluster
from parallax.results.lens_results import Bound, Compilation, Figure, Prediction


def predict(
    compilation: Compilation,
    cluster: Cluster,
    dtype: str,
    rates: Rates | None = None,
    *,
    useful_flops: float | None = None,
    estimate_s: Figure | None = None,
) -> Prediction:
    """Predict the time and energy of one call of a compiled program.

    Args:
      compilation: the compiled program.
      cluster: the GPUs and their interconnect.
      dtype: dtype of the matrix products, for the roofline and for MFU.
      rates: cost model constants; None uses those shipped for the GPU.
      useful_flops: FLOPs that the model needs, over all devices; None leaves MFU out.
      estimate_s: the analytical model's step time, shown beside the prediction.

    Raises:
      ValueError: the program has no execution trace, or the GPU has no rates.
    """
    if compilation.work is None:
        raise ValueError(f"this program cannot be priced: {compilation.unpriced}")
    rates = rates_for(cluster, rates)
    cost = estimate_cost(compilation.work, cluster, rates)
    bound = roofline(compilation, cluster, dtype)
    low, high = known_error_bar(cost, rates, compilation.work)
    between = any(crosses_nodes(c, cluster) for c in compilation.collectives)
    bar = "80 % error bar"
    if high is None:
        bar = "lower bound, no error bar" if low is None else "lower bound, no upper end of its bar"
    note = f"{bar}; {rates.name} rates {rates.version}"
    tokens, step = compilation.tokens, max(cost.seconds, bound.step_s.value)
    low = low and max(low, bound.step_s.value)
    high = high and max(high, step)
    terms = dict(cost.terms)
    if step > cost.seconds:
        terms["up to the roofline"] = step - cost.seconds
    mfu = None
    if useful_flops is not None:
        peak = cluster.gpu.peak_flops(dtype) * cluster.devices
        mfu = Figure(useful_flops / (step * peak), "1", "modelled")
    return Prediction(
        rates=f"{rates.name} {rates.version}",
        cluster=cluster.name,
        phase=compilation.phase,
        step_s=Figure(step, "s", "modelled", low, high, note),
        tokens_per_s=Figure(
            _rate(tokens, step),
            compilation.rate_unit,
            "modelled",
            None if high is None else _rate(tokens, high),
            None if low is None else _rate(tokens, low),
            note,
        ),
        terms_s=dict(sorted(terms.items(), key=lambda term: -term[1])),
        exposed_s=Figure(cost.exposed_s, "s", "modelled"),
        hidden_s=Figure(cost.hidden_s, "s", "modelled"),
        exposed_per_token_s=Figure(cost.exposed_s / tokens, "s", "modelled"),
        energy_j=Figure(
            joules(cost, rates) * cluster.devices,
            "J",
            "modelled",
            note=rates.sources.get("power", ""),
        ),
        bound=bound,
        mfu=mfu,
        unvalidated=unvalidated(
            compilation.work, crosses_nodes=between and not rates.measured_between_nodes
        ),
        estimate_s=estimate_s,
        notes=open_caveats(compilation.work.open_loops, compilation.work.unpriced),
    )


def roofline(compilation: Compilation, cluster: Cluster, dtype: str) -> Bound:
    """Compute a lower bound of the step time: the compiled program's work at peak rates.

    Args:
      compilation: the compiled program.
      cluster: the GPUs and links whose peak rates are used.
      dtype: dtype of the matrix products.
    """
    links = all_link_bytes(compilation.ledger.taken, cluster, least_link_bytes)
    gpu = cluster.gpu
    what, size = "weights", compilation.weight_bytes
    if compilation.reads_cache:
        what, size = "weights and KV cache", size + compilation.kv_cache_bytes
    # Weights that fit the L2 cache may stay there from call to call.
    level, rate = (
        ("L2", gpu.l2_bytes_per_s) if size <= gpu.l2_bytes else ("HBM", gpu.hbm_bytes_per_s)
    )
    terms = {
        "compute": _compute_seconds(compilation, cluster, dtype),
        f"{what} from {level}": size / rate,
        "NVLink": links["nvlink"] / gpu.nvlink_bytes_per_s,
        "network": links["nic"] / cluster.nic_bytes_per_s,
    }
    step = max(terms.values())
    bound = max(terms, key=lambda name: terms[name])
    most = _rate(compilation.tokens, step)
    note = f"lower bound, set by {bound}; nothing is added for latency, overlap or efficiency"
    return Bound(
        cluster=cluster.name,
        terms_s=terms,
        step_s=Figure(step, "s", "modelled", low=step, note=note),
        tokens_per_s=Figure(
            most, compilation.rate_unit, "modelled",
            high=most, note=f"upper bound, set by {bound}",
        ),
    )  # fmt: skip


def _rate(tokens: float, seconds: float) -> float:
    return tokens / seconds if seconds else math.inf  # a program that computes nothing


def _compute_seconds(compilation: Compilation, cluster: Cluster, dtype: str) -> float:
    """Compute the seconds of all products at peak rates: 8-bit ones at theirs, the rest at one."""
    gpu, eight = cluster.gpu, {"f8": "float8", "s8": "int8"}
    narrow = {} if compilation.work is None else compilation.work.dtype_flops()
    faster = {d: f for d, f in narrow.items() if d in eight}
    # A branch's products may be in the one account and not in the other.
    rest = max(0.0, compilation.gemm_flops - sum(faster.values()))
    seconds = rest / gpu.peak_flops(dtype)
    return seconds + sum(flops / gpu.peak_flops(eight[d]) for d, flops in faster.items())
