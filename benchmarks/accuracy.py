"""Fit the shipped constants of the cost model and write their errors, docs/generated/accuracy.md.

  python -m benchmarks.accuracy parallax/cost/shipped docs/generated/accuracy.md

Fits to published measurements (`parallax/cost/data`), tests on shapes held out by a hash and on
sources left out. Hardware: any. Result: a file of constants per GPU and network, and the page;
two minutes.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from parallax.studies.fitting.links import (
    MESSAGE_START_S,
    NODE_SOURCE,
    SIZE_CLASSES,
    FittedLinks,
    HeldOut,
    fit_links,
)
from parallax.cost.fitting import fit_gemm, predicted_collective, predicted_gemm, split, spread
from parallax.cost.gemm import GemmRates
from parallax.cost.measurements import attentions, collectives, gemms, sources
from parallax.cost.networks import FILE
from parallax.cost.rates import COLLECTIVES, LinkRates, PowerRates, Rates, Spread, rates_of
from parallax.meshes.gpus import GPUS

VERSION = "2026-11-21"
HLO = {"bfloat16": "f16", "float16": "f16", "tensorfloat32": "tf32", "int8": "s8"}
PEAK = {"f16": "float16", "tf32": "tensorfloat32", "s8": "int8", "f32": "float32", "f64": "float64"}
XLA_CLOCK = "xla_collective_sm90"
# Not fitted: figures from published measurements, cited in `sources`. A line for each GPU of
# `meshes.gpus` in MEMORY, L2 and IDLE_W.
MEMORY = {"h100": 2.95e12, "h200": 4.3e12, "a100": 1.79e12, "b200": 6.75e12}
L2 = {"h100": 5.5e12, "h200": 9.7e12, "a100": 4.0e12, "b200": 12e12}
# 46 to 48 GB/s per 400 Gb/s card are published.
NETWORK = 47e9
IDLE_W = {"h100": 100.0, "h200": 110.0, "a100": 60.0, "b200": 140.0}
START = {
    "f16": GemmRates(800e12, 2.9e12, 4e-6, 1e-6, 0.2),
    "tf32": GemmRates(400e12, 2.9e12, 4e-6, 1e-6, 0.2),
}
SAID = {
    "matrix products": "fitted to published measurements, docs/generated/accuracy.md",
    "memory": "share of HBM that copies and decode attention reach (peers' figures): 88 % on H100, "
    "4.3 TB/s on H200; the same share of others'",
    "attention": "cuDNN 64 to 256 wide, FlashAttention 4 at 512 (published); scaled by peak FLOP/s",
    "launches": "2 us a kernel in a stream without CUDA graphs; assumed, not fitted",
    "communication": "each GPU's own, fitted to published measurements inside a node; messages "
    "are H100's, scaled by NVLink's rate",
    "network": "47 GB/s a 400 Gb/s card, and the start of one message between two nodes "
    "(published); the network is not named",
    "power": "0.93 pJ a FLOP at 700 W and 749 TFLOP/s, all in (published), split over FLOPs, HBM "
    "and idle; assumed",
}


def scaled(rates: GemmRates, flops: float, memory: float) -> GemmRates:
    """Scale rates to another GPU or dtype, by the ratio of peaks."""
    return dataclasses.replace(rates, flops_per_s=float(f"{rates.flops_per_s * flops:.4g}"),
                               bytes_per_s=float(f"{rates.bytes_per_s * memory:.4g}"))  # fmt: skip


def of_gpu(gpu: str, *kinds: str):
    """Return the measured products of a GPU whose operands have one of some HLO dtypes."""
    return [g for g in gemms() if g.gpu == gpu and HLO[g.dtype] in kinds]


def h100_gemm(rows) -> dict[str, GemmRates]:
    """Fit rates of products on H100 where there are measurements; scale by peaks elsewhere."""
    sms, gpu = GPUS["h100"].sm_count, GPUS["h100"]
    found = {}
    for kind, start in START.items():
        mine = [r for r in rows if HLO[r.dtype] == kind]
        if mine:
            found[kind] = fit_gemm(mine, sms, start)
    found.setdefault("tf32", scaled(found["f16"], 0.5, 1.0))
    return found | {
        "s8": scaled(found["f16"], gpu.int8_flops / gpu.bf16_flops * 0.9, 1.0),
        "f32": scaled(found["f16"], gpu.fp32_flops / gpu.bf16_flops, 1.0),
        "f64": scaled(found["f16"], gpu.fp64_flops / gpu.bf16_flops, 1.0),
    }


def links_of(gpu: str, fitted: FittedLinks) -> dict[str, LinkRates]:
    """Return a GPU's links inside a node, and a message over the card of an unnamed network."""
    card = NETWORK * GPUS[gpu].nic_bytes_per_s / GPUS["h100"].nic_bytes_per_s
    return {**fitted.inside[gpu], "network": LinkRates(MESSAGE_START_S, float(f"{card:.4g}"))}


def power_of(gpu: str) -> PowerRates:
    """Return idle power, and the rest of the power limit split over FLOPs and bytes."""
    made = GPUS[gpu]
    each = (made.tdp_w - IDLE_W[gpu]) / (0.757 * made.bf16_flops)
    return PowerRates(IDLE_W[gpu], float(f"{each * 0.8:.3g}"), 3e-11, 1e-11, made.tdp_w)


def make_rates(fitted: FittedLinks) -> dict[str, Rates]:
    """Fit the products of every GPU to the rows that are not held out, and add its links."""
    to_fit, _ = split([g for g in gemms() if g.gpu == "h100"])
    base_gemm = h100_gemm(to_fit)
    draft = {t: Spread(0.8, 1.25) for t in ("attention", "launches", "memory")}
    sms = GPUS["h100"].sm_count
    products = spread([predicted_gemm(base_gemm[HLO[r.dtype]], r, sms) for r in to_fit],
                      [r.seconds for r in to_fit])  # fmt: skip
    return {
        name: _rates_of(name, base_gemm, fitted, {**draft, "matrix products": products})
        for name in GPUS
    }


def _widening(gpu: str) -> float:
    """Return the power that widens error bars of constants that are scaled from H100's."""
    return 1.0 if gpu == "h100" else 1.5


def _rates_of(
    name: str,
    gemm_of_h100: dict[str, GemmRates],
    fitted: FittedLinks,
    spreads: dict[str, Spread],
) -> Rates:
    """Return a GPU's constants: links of its own, others H100's or scaled by peaks and bandwidths.

    Args:
      spreads: error bars on an H100, all but those of communication.
    """
    gpu, h100 = GPUS[name], GPUS["h100"]
    gemm, origins = gemm_of_h100, dict(SAID)
    if name != "h100":
        memory = MEMORY[name] / MEMORY["h100"]
        # Each dtype by its own peak: float32's and float64's grow less than the tensor cores'.
        gemm = {k: scaled(v, gpu.peak_flops(PEAK[k]) / h100.peak_flops(PEAK[k]), memory)
                for k, v in gemm_of_h100.items()}  # fmt: skip
        rows, _ = split(of_gpu(name, "f16"))
        if rows:
            gemm["f16"] = fit_gemm(rows, gpu.sm_count, gemm["f16"])
        origins["matrix products"] += (
            "; its own 16-bit rows" if of_gpu(name, "f16") else "; H100's, scaled by peaks"
        )
    widen = _widening(name)
    return Rates(
        name=name, gpu=name, gemm=gemm,
        attention=rates_of(name).attention,
        memory_bytes_per_s=MEMORY[name], l2_bytes_per_s=L2[name], l2_share=0.625,
        launch_s=2e-6, loop_s=15e-6, links=links_of(name, fitted), power=power_of(name),
        spreads={t: Spread(round(s.low**widen, 3), round(s.high**widen, 3))
                 for t, s in spreads.items()} | {"communication": fitted.spread(name)},
        sources=origins, version=VERSION,
    )  # fmt: skip


def line(what: str, modelled, measured, bar: Spread | None = None) -> str:
    """Render a row of a table: n, median, p90, MAPE, bias, share inside the error bar."""
    a, b = np.asarray(modelled), np.asarray(measured)
    apart = np.abs(a / b - 1)
    cells = [f"{len(a)}", *(f"{100 * x:.1f} %" for x in (
        np.median(apart), np.quantile(apart, 0.9), apart.mean()))]  # fmt: skip
    cells.append(f"{100 * np.median(a / b - 1):+.1f} %")
    inside = (
        "" if bar is None else f"{100 * np.mean((b >= a * bar.low) & (b <= a * bar.high)):.0f} %"
    )
    return f"| {what} | " + " | ".join([*cells, inside]) + " |"


HEAD = ("| what | n | median | p90 | mean | bias | in error bar |\n"
        "|---|---|---|---|---|---|---|")  # fmt: skip


def page(made: dict[str, Rates], fitted: FittedLinks) -> str:
    """Render docs/generated/accuracy.md."""
    text = [
        _INTRO,
        *_products_on_h100(made["h100"]),
        *_products_elsewhere(made),
        *_links_of_nodes(fitted),
        *_other_sources(made["h100"]),
        *_links_between_nodes(fitted),
        *_unnamed_networks(made),
        *_attention(made["a100"]),
        "", "## Not validated\n", *(f"- {x}" for x in _OPEN), "", "## Sources\n",
    ]  # fmt: skip
    for name, source in sources().items():
        text.append(f"- `{name}`: {source['title']}. {source['licence']}. <{source['url']}>")
    return "\n".join(text) + "\n"


def _product_line(what: str, rows, gemm: dict[str, GemmRates], gpu: str, bar: Spread) -> str:
    modelled = [predicted_gemm(gemm[HLO[r.dtype]], r, GPUS[gpu].sm_count) for r in rows]
    return line(what, modelled, [r.seconds for r in rows], bar)


def _products_on_h100(h100: Rates) -> list[str]:
    rows = [g for g in gemms() if g.gpu == "h100"]
    to_fit, held = split(rows)
    gemm, bar = dict(h100.gemm), h100.spreads["matrix products"]
    text = ["## Matrix products on one H100\n", HEAD]
    title = "**held-out shapes** (target: median 6 %, p90 18 %)"
    text.append(_product_line(title, held, gemm, "h100", bar))
    text.append(_product_line("fitted shapes", to_fit, gemm, "h100", bar))
    for dtype in ("bfloat16", "float16", "tensorfloat32"):
        mine = [r for r in held if r.dtype == dtype]
        text.append(_product_line(f"held-out, {dtype}", mine, gemm, "h100", bar))
    for name in sorted({r.source for r in rows}):
        others = h100_gemm([r for r in rows if r.source != name])
        mine = [r for r in rows if r.source == name]
        text.append(_product_line(f"all of `{name}`, fitted without it", mine, others, "h100", bar))
    return text


def _products_elsewhere(made: dict[str, Rates]) -> list[str]:
    text = ["", "## Matrix products on other GPUs\n", HEAD]
    for name in ("a100", "b200"):
        _, held = split(of_gpu(name, "f16"))
        # Whatever their dtype, their cost is estimated as that of 16-bit products.
        gemm = dict.fromkeys(HLO.values(), made[name].gemm["f16"])
        bar = made[name].spreads["matrix products"]
        text.append(_product_line(f"{name}, held-out shapes", held, gemm, name, bar))
    return [
        *text, "", "H200: no published products were found; its constants are H100's, its memory's."
    ]  # fmt: skip


def _held_out(what: str, held_out: list[HeldOut], bar: Spread | None = None) -> str:
    return line(what, [h.modelled_s for h in held_out], [h.row.seconds for h in held_out], bar)


def _links_of_nodes(fitted: FittedLinks) -> list[str]:
    held = [h for h in fitted.held_out if h.row.nodes == 1]
    groups = [("**all** (target: mean 8 %)", held)]
    groups += [(gpu, [h for h in held if h.where == gpu]) for gpu in GPUS]
    groups += [(kind, [h for h in held if h.row.kind == kind]) for kind in COLLECTIVES]
    groups += [(f"{n} GPUs", [h for h in held if h.row.devices == n]) for n in (2, 4, 8)]
    groups += [(f"arrays {size}", [h for h in held if h.regime.endswith(size)])
               for size in SIZE_CLASSES]  # fmt: skip
    return [
        "", "## Collectives inside a node, each of five folds by a fit to the others\n", HEAD,
        *(_held_out(what, rows, fitted.spread(what) if what in GPUS else None)
          for what, rows in groups), "",
        "Each GPU has constants of its own, from one source's rows of one method (2, 4 and 8 GPUs, "
        "512 bytes to 512 MiB): a prediction takes these. From eight GPUs on, Hopper's and "
        "Blackwell's switches sum large all-reduces.",
    ]  # fmt: skip


def _other_sources(h100: Rates) -> list[str]:
    text = ["", "## Other sources of collectives inside a node of H100, none fitted\n", HEAD]
    offsets = []
    for name in sorted({c.source for c in collectives() if c.gpu == "h100"} - {NODE_SOURCE}):
        for kind in COLLECTIVES:
            mine = [c for c in collectives() if (c.source, c.kind, c.nodes) == (name, kind, 1)]
            late = _offset(h100, mine) if name == XLA_CLOCK else 0.0
            if late:
                offsets.append(f"{kind} {1e6 * late:.1f} us")
            for devices in sorted({c.devices for c in mine}):
                rows = [c for c in mine if c.devices == devices]
                modelled = [predicted_collective(h100, r) + late for r in rows]
                text.append(line(f"`{name}`, {kind}, {devices} GPUs", modelled,
                                 [r.seconds for r in rows]))  # fmt: skip
    return [
        *text, "",
        f"XLA's clock counts a whole program. Its rows carry an offset: {', '.join(offsets)}, the "
        "median of arrays up to 64 KiB. A prediction does not add it: launches are a term of "
        "their own. Its sums of large arrays are slower than those of the NCCL that is fitted, "
        "which is newer; its other kinds are not.",
    ]  # fmt: skip


def _offset(h100: Rates, rows) -> float:
    """Return the seconds that a source's clock counts beside a collective."""
    return float(np.median([r.seconds - predicted_collective(h100, r)
                            for r in rows if r.bytes <= 2**16]))  # fmt: skip


def _links_between_nodes(fitted: FittedLinks) -> list[str]:
    held = [h for h in fitted.held_out if h.row.nodes > 1]
    two = [h for h in held if h.row.nodes == 2]
    text = [
        "", "## Between nodes, the network named; each fold by a fit to the others\n", HEAD,
        _held_out("**two nodes** (target: mean 15 %)", two),
    ]  # fmt: skip
    for name, network in fitted.networks.items():
        for nodes in sorted({h.row.nodes for h in held if h.where == name}):
            for kind in COLLECTIVES:
                mine = [h for h in held
                        if (h.where, h.row.nodes, h.row.kind) == (name, nodes, kind)]  # fmt: skip
                if mine:
                    what = f"`{name}`, {kind}, {nodes} nodes"
                    text.append(_held_out(what, mine, network.spread))
    return [*text, "", *(f"- `{n.name}`: {n.source}." for n in fitted.networks.values())]


def _unnamed_networks(made: dict[str, Rates]) -> list[str]:
    text = ["", "## Two nodes, the network not named (unvalidated)\n", HEAD]
    for name in sorted({c.source for c in collectives() if c.nodes == 2}):
        mine = [c for c in collectives() if c.source == name and c.nodes == 2]
        for kind in dict.fromkeys(r.kind for r in mine):
            rows = [r for r in mine if r.kind == kind]
            modelled = [predicted_collective(made[r.gpu], r) for r in rows]
            title = f"`{name}`, {kind}, {rows[0].devices} GPUs"
            text.append(line(title, modelled, [r.seconds for r in rows]))
    return [
        *text, "",
        "The same cards give bus bandwidths that differ by 5x: a network is not known from its "
        "cards. That is why time between nodes of an unnamed network says *unvalidated*.",
    ]  # fmt: skip


def _attention(a100: Rates) -> list[str]:
    rows = [a for a in attentions() if a.gpu == "a100"]
    modelled = [
        (2 * r.batch * r.kv_heads * r.head_dim * r.kv_len * 2) / a100.memory_bytes_per_s
        + a100.launch_s for r in rows
    ]  # fmt: skip
    return [
        "", "## Attention on one A100 (decode, keys and values from memory)\n", HEAD,
        line("all rows; none fitted", modelled, [r.seconds for r in rows], a100.spreads["memory"]),
    ]  # fmt: skip


_INTRO = """# How far off the cost model is

Made by `python -m benchmarks.accuracy parallax/cost/shipped docs/generated/accuracy.md` from
published measurements (`parallax/cost/data`, figures only, with source and licence). Shapes are
split into fitted and held out (40 %) by a hash of the shape; a miss is shown, not fitted again.
Bias is the median of modelled over measured minus one. Error bars are the inner 86 % of the fitted
rows, meant to hold 80 % of new ones. Nothing on this page was measured by this project: no GPU was
at hand.
"""
_OPEN = (
    "A whole step: no clean published table of a layer's or a model's time was found, and no GPU "
    "was at hand.",
    "Passes over memory, launches and the share of the L2 cache that holds what was just written: "
    "constants of other people's figures, error bars assumed (0.8 to 1.25).",
    "Fused attention in a prefill; INT8, float32 and float64 products: by the ratio of peaks.",
    "Messages inside nodes of H200, A100 and B200: H100's, scaled by NVLink's rate.",
    "Kinds of collectives that were not measured on a network: they follow from those that were.",
    "Energy: split by assumption; no power was measured.",
)


def main(folder: str, page_path: str) -> None:
    fitted = fit_links()
    made = make_rates(fitted)
    for name, rates in made.items():
        rates.save(Path(folder) / f"{name}.json")
    for name, network in fitted.networks.items():
        FILE.save(network, Path(folder) / "networks" / f"{name}.json")
    Path(page_path).write_text(page(made, fitted), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
