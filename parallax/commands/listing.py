"""The lists of names that `parallax list` prints."""

KINDS = (
    "models", "families", "strategies", "clusters", "networks", "implementations", "papers",
)  # fmt: skip


def listing(kind: str) -> str:
    """Return one line per item of a kind, one of KINDS."""
    return "\n".join(f"{name:<27}{what}" for name, what in _ROWS[kind]())


def _models():
    from parallax.papers import PAPERS

    for name, paper in PAPERS.items():
        c = paper.config
        yield (
            name,
            (
                f"{c.num_layers} layers, {c.d_model} wide, {c.num_heads} heads of {c.head_dim}, "
                f"MLP {c.d_ff} ({c.mlp}), {c.num_params / 1e9:.3g} G parameters"
            ),
        )


def _families():
    from parallax.models.huggingface.families import FAMILIES

    for name, family in FAMILIES.items():
        yield name, f"{family.examples}: {family.has}" if family.has else family.examples


def _strategies():
    from parallax.strategies import STRATEGIES

    for name, named in STRATEGIES.items():
        yield name, f"{named.says} ({', '.join(named.axes)})"
    yield "<name>+<name>", "several combined, with --mesh=axis=size,... over the axes of all"


def _clusters():
    from parallax.meshes.cluster import CLUSTERS

    for name, c in CLUSTERS.items():
        yield (
            name,
            (
                f"{c.nodes} x {c.gpus_per_node} {c.gpu.device_kind}, NVLink "
                f"{c.gpu.nvlink_bytes_per_s / 1e9:g} GB/s, "
                f"network {c.nic_bytes_per_s / 1e9:g} GB/s per GPU"
            ),
        )
    yield "<gpu>_<nodes>x8", "any number of nodes of eight, such as h100_4x8"
    yield "<cluster>@<network>", "one whose network is named, such as h100_4x8@efa"


def _networks():
    from parallax.cost.networks import network_rates
    from parallax.meshes.networks import NETWORKS

    for name, network in NETWORKS.items():
        yield name, f"{network.what}. Measured: {network_rates(name).source}"


def _papers():
    from parallax.papers import PAPERS

    for name, paper in PAPERS.items():
        yield name, paper.title


def _implementations():
    from parallax.analytic.described.implementation import implementations
    from parallax.analytic.described.serving_constants import serving_software

    for phase, named in (("training", implementations()), ("serving", serving_software())):
        for name, software in named.items():
            fitted = dict.fromkeys(x for x in software.sources.values() if x.startswith("fitted"))
            yield name, f"{phase}: {'; '.join(fitted)}"


_ROWS = {
    "models": _models, "families": _families, "strategies": _strategies, "clusters": _clusters,
    "networks": _networks, "implementations": _implementations, "papers": _papers,
}  # fmt: skip
