"""The exact bytes of one layer beside those a paper prints, with the reason for each difference."""

from parallax.models.config import PARTS, ModelConfig
from parallax.models.parameters import layer_matrices
from parallax.papers.audit import judge
from parallax.papers.paper import Claim, Paper
from parallax.papers.results import FootprintRow, FootprintVerdict
from parallax.placement.footprint import Footprint, layer_footprints, stored_bytes
from parallax.workload import Workload

# The formats of the compressed_layerwise paper, for attention and for the MLP.
PAPER_FORMATS = ("int8", "int8+2:4")
_MB = 1e6
_UNITS = {"MB": 1e6, "GB": 1e9}
_NORMS = "norms and what else stays dense"


def footprint_rows(
    config: ModelConfig, workload: Workload | None, paper: Paper | None = None
) -> tuple[FootprintRow, ...]:
    """Count a layer's bytes in the model's dtype, then in the compressed_layerwise paper's formats.

    Args:
      config: the model.
      workload: the workload whose microbatch passes through the layer, and whose keys and values
        are kept; None leaves both out.
      paper: the paper whose figures are shown beside; None for none.
    """
    return tuple(
        row for formats in storable(config) for row in _rows(config, workload, formats, paper)
    )


def storable(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    """Return the formats to compare, of which the model's sizes allow each.

    These are the model's dtype, its own formats and those of the compressed_layerwise paper.
    """
    allowed = [(config.dtype, config.dtype)]
    for formats in (config.compression, PAPER_FORMATS):
        if formats is None or formats in allowed:
            continue
        try:
            config.replace(compression=formats)
        except ValueError:
            continue
        allowed.append(formats)
    return tuple(allowed)


def _rows(
    config: ModelConfig, workload: Workload | None, formats: tuple[str, str], paper: Paper | None
) -> list[FootprintRow]:
    layer = layer_of(config, workload, formats)
    attention, mlp = (
        [(m, stored_bytes(m, form)) for m in layer_matrices(config, part)]
        for part, form in zip(PARTS, formats, strict=True)
    )
    of_attention, of_mlp = (sum(n for _, n in matrices) for matrices in (attention, mlp))
    of_qkv = sum(n for m, n in attention if m.reads_stream)
    packed = formats != (config.dtype, config.dtype)
    claimed = _COMPRESSED if packed else _DENSE
    counted = {
        "q, k and v": of_qkv,
        "attention's output matrix": of_attention - of_qkv,
        "all attention matrices": of_attention,
        "one MLP matrix": mlp[0][1] // mlp[0][0].count,
        "all MLP matrices": of_mlp,
        _NORMS: layer.weights - of_attention - of_mlp,
        "weights of one layer": layer.weights,
        "the layer after further steps": layer.weights,
        "weights of all layers": layer.weights * config.num_layers,
        "activations of a microbatch": layer.activations,
        "keys and values of the batch": layer.kv,
    }
    rows = []
    for what, n_bytes in counted.items():
        quantity, why = claimed.get(what, ("", ""))
        claim = _claim(paper, quantity)
        if claim is None and (what in _ONLY_CLAIMED or not n_bytes):
            continue
        if claim is None:
            rows.append(FootprintRow(formats, what, n_bytes, why=_ALONE.get(what, "")))
            continue
        verdict = _verdict(claim, n_bytes, what, packed)
        said = why if verdict != "consistent" else ""
        if quantity == "further compressed layer":
            bits = 8 * claim.value * _MB / sum(m.size for m, _ in (*attention, *mlp))
            said = f"would need {bits:.2f} bits a weight; no method is printed"
        rows.append(FootprintRow(formats, what, n_bytes, claim, verdict, said))
    return rows


def _verdict(claim: Claim, n_bytes: int, what: str, packed: bool) -> FootprintVerdict:
    verdict = judge(claim, n_bytes / _UNITS[claim.unit])
    if verdict in ("consistent", "rounding"):
        return verdict
    return "our deviation" if packed and what == _NORMS else "differs"


def layer_of(
    config: ModelConfig, workload: Workload | None, formats: tuple[str, str], kv: bool = True
) -> Footprint:
    """Count one layer's weights, a microbatch's activations and, with `kv`, the batch's cache."""
    return layer_footprints(
        config,
        [formats] * config.num_layers,
        tokens=workload.tokens // workload.microbatches if workload else 0,
        cached_tokens=workload.tokens if workload and kv else 0,
    )[0]


def _claim(paper: Paper | None, quantity: str) -> Claim | None:
    claims = paper.claims if paper else ()
    return next((c for c in claims if c.quantity == quantity and c.unit in _UNITS), None)


# What we count -> (the paper's quantity, the reason if it differs).
_DENSE = {
    "q, k and v": ("attention QKV weights", ""),
    "attention's output matrix": ("attention output weights", ""),
    "one MLP matrix": ("one MLP matrix", ""),
    "all attention matrices": ("attention weights to compress", "leaves the output matrix out"),
    "all MLP matrices": ("MLP weights to compress", "counts two of the three matrices"),
    _NORMS: ("norm weights", ""),
    "weights of one layer": ("uncompressed layer", ""),
    "weights of all layers": ("all layers", ""),
    "activations of a microbatch": (
        "activations",
        "the paper's product is a whole batch's (31.5 GB), printed 320 times smaller; ours is one "
        "microbatch in and out of the layer with its widest rows",
    ),
}
_COMPRESSED = {
    "all attention matrices": (
        "attention weights in INT8",
        "leaves out the output matrix, and the float32 scale of every output channel",
    ),
    "all MLP matrices": (
        "MLP weights in INT8 and 2:4",
        "starts from two of the three matrices, without positions (2 bits a kept weight), scales",
    ),
    _NORMS: (
        "norm weights in INT8",
        "norms stay in the model's dtype here, the paper has them in INT8",
    ),
    "weights of one layer": (
        "compressed layer",
        "adds up its own lines: two matrices are missing, 24.6 MB of activations and 2 MB of "
        "workspace are in it",
    ),
    "the layer after further steps": ("further compressed layer", ""),
    "activations of a microbatch": (
        "final activations",
        "weights' formats change no activation; a forward pass keeps nothing to recompute",
    ),
}
_ONLY_CLAIMED = ("the layer after further steps",)
_ALONE = {
    "keys and values of the batch": "not in the paper's sum; decoding needs them",
    "activations of a microbatch": "in and out, and the layer's widest rows",
}
