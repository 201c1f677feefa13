"""The predict lens. For now a roofline: the program cannot be faster than its largest term."""

from parallax.lenses.links import all_link_bytes, link_seconds
from parallax.meshes.cluster import Cluster
from parallax.results import Compilation, Figure, Prediction


def roofline(compilation: Compilation, cluster: Cluster, dtype: str) -> Prediction:
    """A lower bound of the step time, from the compiled program at the GPU's peak rates.

    Args:
      compilation: of the program.
      cluster: whose rates are taken.
      dtype: of the matrix products.
    """
    links = all_link_bytes(compilation.collectives, cluster)
    from_hbm = {"weights from HBM": compilation.weight_bytes}
    if compilation.phase == "decode":
        both = compilation.weight_bytes + compilation.kv_cache_bytes
        from_hbm = {"weights and KV cache from HBM": both}
    terms = {
        "compute": compilation.gemm_flops / cluster.gpu.peak_flops(dtype),
        **{name: size / cluster.gpu.hbm_bytes_per_s for name, size in from_hbm.items()},
        "NVLink": links["nvlink"] / cluster.gpu.nvlink_bytes_per_s,
        "network": links["nic"] / cluster.nic_bytes_per_s,
    }
    rate = cluster.gpu.peak_flops(dtype)
    exposed = sum(
        max(0.0, link_seconds(c, cluster) - c.flops_between / rate) * c.count
        for c in compilation.collectives
    )
    step = max(terms.values())
    bound = max(terms, key=lambda name: terms[name])
    note = f"lower bound, set by {bound}; nothing is added for latency, overlap or efficiency"
    return Prediction(
        model="roofline",
        cluster=cluster.name,
        terms_s=terms,
        exposed_s=Figure(
            exposed, "s", "modelled",
            note="link time at peak rates beyond the matrix products between start and done",
        ),
        step_s=Figure(step, "s", "modelled", low=step, note=note),
        tokens_per_s=Figure(
            compilation.tokens / step, "tokens/s", "modelled",
            high=compilation.tokens / step, note=f"upper bound, set by {bound}",
        ),
    )  # fmt: skip
