"""The constants of every GPU, put together from the fits of kernels and of links."""

from collections.abc import Mapping, Sequence

from parallax.cost.rates import LinkRates, PowerRates, Rates, Spread
from parallax.meshes.gpus import GPUS
from parallax.studies.fitting import products
from parallax.studies.fitting.kernels import MEMORY, HeldOut, attention_of, experts_of, spreads_of
from parallax.studies.fitting.links import MESSAGE_START_S, FittedLinks

VERSION = "2026-11-29"
# Not fitted: figures from published measurements, cited in `sources`. A line for each GPU of
# `meshes.gpus` in L2, IDLE_W and `kernels.MEMORY`.
L2 = {"h100": 5.5e12, "h200": 9.7e12, "a100": 4.0e12, "b200": 12e12}
L2_SHARE = 0.625
IDLE_W = {"h100": 100.0, "h200": 110.0, "a100": 60.0, "b200": 140.0}
# 46 to 48 GB/s per 400 Gb/s card are published.
NETWORK = 47e9
LAUNCH_S, LOOP_S = 2e-6, 15e-6
ASSUMED = {"launches": Spread(0.8, 1.25), "memory": Spread(0.8, 1.25)}
_ON = "fitted to published measurements of the GPU, docs/generated/accuracy.md"
SOURCES = {
    "matrix products": _ON,
    "memory": "share of HBM that copies and decode attention reach (peers' figures): 88 % on H100, "
    "4.3 TB/s on H200; the same share of others'",
    "attention": f"{_ON}; prompts 512 wide at 0.49 of 256's FLOP/s (FlashAttention 4, published); "
    "backward passes over forward ones as cuDNN's on GB200",
    "experts": "fitted to published measurements of the GPU (A100: H100's, scaled by peaks)",
    "launches": "2 us a kernel in a stream without CUDA graphs; assumed, not fitted",
    "communication": "each GPU's own, fitted to published measurements inside a node; messages "
    "are H100's, scaled by NVLink's rate",
    "network": "47 GB/s a 400 Gb/s card, and the start of one message between two nodes "
    "(published); the network is not named",
    "power": "0.93 pJ a FLOP at 700 W and 749 TFLOP/s, all in (published), split over FLOPs, HBM "
    "and idle; assumed",
}


def fitted_rates(links: FittedLinks, kernels: Sequence[HeldOut]) -> Mapping[str, Rates]:
    """Return the constants of every GPU, fitted to all published rows.

    Args:
      links: fitted links.
      kernels: held-out rows of all kernels, for the error bars.
    """
    return {
        name: Rates(
            name=name, gpu=name, gemm=products.gemm_of(gpu), attention=attention_of(name),
            experts=experts_of(name), memory_bytes_per_s=MEMORY[name], l2_bytes_per_s=L2[name],
            l2_share=L2_SHARE, launch_s=LAUNCH_S, loop_s=LOOP_S, links=_links_of(name, links),
            power=_power_of(name),
            spreads={**ASSUMED, **spreads_of(kernels, name), "communication": links.spread(name)},
            sources=SOURCES, version=VERSION,
        ) for name, gpu in GPUS.items()
    }  # fmt: skip


def _links_of(gpu: str, fitted: FittedLinks) -> dict[str, LinkRates]:
    """Return a GPU's links inside a node, and a message over the card of an unnamed network."""
    card = NETWORK * GPUS[gpu].nic_bytes_per_s / GPUS["h100"].nic_bytes_per_s
    return {**fitted.inside[gpu], "network": LinkRates(MESSAGE_START_S, float(f"{card:.4g}"))}


def _power_of(gpu: str) -> PowerRates:
    """Return idle power, and the rest of the power limit split over FLOPs and bytes."""
    made = GPUS[gpu]
    each = (made.tdp_w - IDLE_W[gpu]) / (0.757 * made.bf16_flops)
    return PowerRates(IDLE_W[gpu], float(f"{each * 0.8:.3g}"), 3e-11, 1e-11, made.tdp_w)
