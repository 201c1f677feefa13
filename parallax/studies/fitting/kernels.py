"""The fits of kernels: products, fused attention and experts, with their rows held out.

The constants are fitted to all rows of `parallax/cost/data`; a row's held-out figure is of a fit
to the four folds that it is not in.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from parallax.cost.attention import AttentionRates
from parallax.cost.experts import ExpertRates, GroupedRates, RowExchangeRates
from parallax.cost.rates import Spread
from parallax.meshes.gpus import GPUS, Gpu
from parallax.studies.fitting import attention as attention_fit
from parallax.studies.fitting import experts as experts_fit
from parallax.studies.fitting import products as products_fit
from parallax.studies.fitting.robust import held_out, quantiles

# Bytes per second of a copy: 88 % of HBM's on H100 and 4.3 TB/s on H200, published; shares of
# HBM's elsewhere.
MEMORY = {"h100": 2.95e12, "h200": 4.3e12, "a100": 1.79e12, "b200": 6.75e12}


class HeldOut(NamedTuple):
    """All rows of one term on one GPU, each modelled by a fit without the row's fold.

    Attributes:
      term, gpu: what they are of.
      rows: the measurements.
      modelled, measured: seconds [r].
      sizes: the size class of each row.
    """

    term: str
    gpu: str
    rows: Sequence[Any]
    modelled: np.ndarray
    measured: np.ndarray
    sizes: tuple[str, ...]


# Term of `Rates.spreads` -> the terms of regimes that it is the error bar of.
TERMS = {
    "matrix products": ("products",),
    "attention": ("attention of prompts", "attention in decoding"),
}


@functools.cache
def attention_of(name: str) -> AttentionRates:
    """Fit the attention of a GPU to all its rows.

    Backward passes were measured on GB200 alone: other GPUs' are as much slower than their forward
    ones as cuDNN's are there.
    """
    forward, backward = _training_factors(attention_fit.training())
    gpu, memory = GPUS[name], MEMORY[name]
    return attention_fit.fit_attention(
        gpu, memory, attention_fit.prompts(name), attention_fit.steps(name),
        attention_fit.steps(name, widest=True), backward / (1 if name == "b200" else forward),
    )  # fmt: skip


def _training_factors(rows: list) -> tuple[float, float]:
    return attention_fit.fit_training(_b200_forward(), GPUS["b200"], MEMORY["b200"], rows)


@functools.cache
def _b200_forward() -> AttentionRates:
    rows = attention_fit.prompts("b200"), attention_fit.steps("b200")
    return attention_fit.fit_attention(GPUS["b200"], MEMORY["b200"], *rows, [], 1.0)


def experts_of(name: str) -> ExpertRates:
    """Fit the experts of a GPU; without measurements they are H100's, scaled by peaks."""
    if name not in experts_fit.KERNELS:
        return _scaled_experts(experts_of("h100"), GPUS[name], GPUS["h100"])
    gpu, rows = GPUS[name], experts_fit.exchange_rows(name)
    inside = [r for r in rows if r.nodes == 1]
    exchange = {d: experts_fit.fit_exchange(gpu, inside, _across(), d) for d in experts_fit.ITEMS}
    return ExpertRates(
        experts_fit.fit_grouped(gpu, experts_fit.grouped_rows(name)),
        exchange["dispatch_s"], exchange["combine_s"],
    )  # fmt: skip


def _across() -> list:
    return [r for name in experts_fit.KERNELS for r in experts_fit.exchange_rows(name)
            if r.nodes > 1]  # fmt: skip


def _scaled_experts(of: ExpertRates, gpu: Gpu, base: Gpu) -> ExpertRates:
    def times[R: (GroupedRates, RowExchangeRates)](rates: R, **ratios: float) -> R:
        return dataclasses.replace(
            rates, **{n: float(f"{getattr(rates, n) * r:.4g}") for n, r in ratios.items()}
        )

    flops = gpu.bf16_flops / base.bf16_flops
    wire, card = (getattr(gpu, n) / getattr(base, n) for n in
                  ("nvlink_bytes_per_s", "nic_bytes_per_s"))  # fmt: skip
    memory = gpu.hbm_bytes_per_s / base.hbm_bytes_per_s
    exchange = {"link_bytes_per_s": wire, "network_bytes_per_s": card, "far_bytes_per_s": card}
    return ExpertRates(
        times(of.grouped, flops_per_s=flops, bytes_per_s=memory),
        times(of.dispatch, **exchange), times(of.combine, **exchange),
    )  # fmt: skip


def held_out_terms() -> Iterator[HeldOut]:
    """Yield the held-out rows of every term and GPU."""
    for name, gpu in GPUS.items():
        rows = products_fit.half_rows(name)
        modelled = _out(rows, lambda r, g=gpu: products_fit.fit_products(g, r),
                        lambda f, r, g=gpu: products_fit.predicted(f, g, r))  # fmt: skip
        yield _term("products", name, rows, modelled,
                    lambda r: "m <= 64" if r.m <= 64 else "m > 64")  # fmt: skip
        yield from _attention_terms(name, gpu)
    yield _training_term()
    yield from _expert_terms()


def _training_term() -> HeldOut:
    rows = attention_fit.training()
    b200 = GPUS["b200"], MEMORY["b200"]

    def predict(factors: tuple[float, float], out: list) -> np.ndarray:
        rates = attention_fit.in_training(_b200_forward(), *factors)
        return attention_fit.predicted(rates, *b200, out)

    modelled = _out(rows, _training_factors, predict)
    return _term("attention in training", "b200", rows, modelled,
                 lambda r: "backward" if r.backward else "forward")  # fmt: skip


def _attention_terms(name: str, gpu: Gpu) -> Iterator[HeldOut]:
    memory = MEMORY[name]
    prompts, steps = attention_fit.prompts(name), attention_fit.steps(name)
    few = steps[:1]

    def predict(rates: AttentionRates, rows: list) -> np.ndarray:
        return attention_fit.predicted(rates, gpu, memory, rows)

    modelled = _out(
        prompts, lambda r: attention_fit.fit_attention(gpu, memory, r, few, [], 1.0), predict
    )
    yield _term("attention of prompts", name, prompts, modelled,
                lambda r: "q_len < 1024" if r.q_len < 1024 else "q_len >= 1024")  # fmt: skip
    parts = attention_fit.KERNELS[name][3]
    forward = dataclasses.replace(attention_of(name), decode={})

    def fit_steps(rows: list) -> AttentionRates:
        own = attention_fit.fit_decode(gpu, memory, rows, parts)
        return dataclasses.replace(forward, decode={"512": own})

    def size(row: Any) -> str:
        each = 4.0 * row.batch * row.kv_heads * row.kv_len * row.head_dim / gpu.sm_count
        return "cache < 1 MB a SM" if each < 1e6 else "cache >= 1 MB a SM"

    yield _term("attention in decoding", name, steps, _out(steps, fit_steps, predict), size)


def _expert_terms() -> Iterator[HeldOut]:
    for name in experts_fit.KERNELS:
        gpu, rows = GPUS[name], experts_fit.grouped_rows(name)
        modelled = _out(rows, lambda r, g=gpu: experts_fit.fit_grouped(g, r),
                        lambda f, r, g=gpu: experts_fit.predicted_grouped(f, g, r))  # fmt: skip
        yield _term("experts' products", name, rows, modelled,
                    lambda r: "tokens <= 64" if r.tokens <= 64 else "tokens > 64")  # fmt: skip
        inside = [r for r in experts_fit.exchange_rows(name) if r.nodes == 1]
        for way in experts_fit.ITEMS:
            modelled = _out(inside, lambda r, g=gpu, w=way: experts_fit.fit_exchange(g, r, r, w),
                            lambda f, r, w=way: experts_fit.predicted_exchange(f, r, w),
                            )  # fmt: skip
            yield _term(f"experts' {way.removesuffix('_s')}", name, inside, modelled,
                        lambda r: "tokens <= 512" if r.tokens <= 512 else "tokens > 512",
                        way)  # fmt: skip
    h200 = [r for r in experts_fit.exchange_rows("h200") if r.nodes == 1]
    for way in experts_fit.ITEMS:
        fitted = lambda r, w=way: experts_fit.fit_exchange(GPUS["h200"], h200, r, w)  # noqa: E731
        modelled = _out(
            _across(), fitted, lambda f, r, w=way: experts_fit.predicted_exchange(f, r, w)
        )
        yield _term(f"experts' {way.removesuffix('_s')} between nodes", "h100 and h200", _across(),
                    modelled, lambda r: "2, 4 nodes" if r.nodes <= 4 else "8 nodes",
                    way)  # fmt: skip


def _out[Row, Fit](
    rows: Sequence[Row], fitted: Callable[[list[Row]], Fit],
    predict: Callable[[Fit, list[Row]], np.ndarray],
) -> np.ndarray:  # fmt: skip
    return held_out(rows, lambda row: getattr(row, "key"), fitted, predict)  # noqa: B009


def _term(
    term: str, gpu: str, rows: Sequence, modelled: np.ndarray, size: Callable[[Any], str],
    seconds: str = "seconds",
) -> HeldOut:  # fmt: skip
    measured = np.array([getattr(r, seconds) for r in rows])
    return HeldOut(term, gpu, rows, modelled, measured, tuple(map(size, rows)))


def spreads_of(found: Sequence[HeldOut], gpu: str) -> dict[str, Spread]:
    """Return the error bars of a GPU's terms: the 80 % interval of its held-out rows."""
    spreads = {}
    for term, names in TERMS.items():
        mine = [h for h in found if h.gpu == gpu and h.term in names]
        both = (np.concatenate([getattr(h, n) for h in mine]) for n in ("modelled", "measured"))
        spreads[term] = Spread(*(round(q, 3) for q in quantiles(*both)))
    return spreads
