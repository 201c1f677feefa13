"""The fit of fused attention: prompts, decoding steps, and the backward pass, per GPU."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from parallax.cost.attention import (
    AttentionRates,
    Calls,
    DecodeRates,
    TileRates,
    decode_times,
    pass_times,
)
from parallax.cost.measurements import MeasuredAttention, attentions
from parallax.meshes.gpus import Gpu
from parallax.studies.fitting.robust import fit

# GPU -> (the kernel that predictions are for, its rows of queries per tile, whether it packs heads,
# the most parts of split keys). Queries per tile, packing and parts were chosen by the fit's error.
KERNELS = {
    "h100": ("vllm_flash_attn_fa3", 128, True, 16),
    "h200": ("vllm_flash_attn_fa3", 128, True, 16),
    "b200": ("vllm_flashinfer_trtllm", 256, False, 16),
    "a100": ("flash_attention", 128, False, 128),
}
WIDTHS = ("64", "128", "192", "256")
_WIDEST = "512"
# Attention 512 wide reaches this share of 256's FLOP/s in FlashAttention 4 on Hopper (published).
_WIDEST_SHARE = 0.49
_BACKWARD_PRODUCTS = 5 / 2  # over a forward pass's


def prompts(gpu: str) -> list[MeasuredAttention]:
    """Return the measured prompts of a GPU in widths of which kernels are fitted."""
    return [r for r in _forward(gpu) if r.q_len > 1 and r.head_dim <= int(WIDTHS[-1])]


def steps(gpu: str, widest: bool = False) -> list[MeasuredAttention]:
    """Return the measured decoding steps of a GPU, of its usual widths or of the widest."""
    return [r for r in _forward(gpu) if r.q_len == 1 and
            (r.head_dim > int(WIDTHS[-1])) == widest]  # fmt: skip


def training() -> list[MeasuredAttention]:
    """Return the measured passes of attention in training, on GB200 alone."""
    return [r for r in attentions() if r.source == "cudnn_training"]


def _forward(gpu: str) -> list[MeasuredAttention]:
    return [r for r in attentions() if r.gpu == gpu and r.source.startswith("aiconfigurator")]


def predicted(
    rates: AttentionRates, gpu: Gpu, memory: float, rows: Sequence[MeasuredAttention]
) -> np.ndarray:
    """Estimate the seconds [r] of measured calls."""
    found = np.empty(len(rows))
    for index, calls, row in _alike(rows):
        found[index] = _times(rates, gpu, memory, calls, row)
    return found


def _times(
    rates: AttentionRates, gpu: Gpu, memory: float, calls: Calls, row: MeasuredAttention
) -> np.ndarray:
    if row.q_len == 1:
        return decode_times(rates, gpu.sm_count, memory, calls, row.head_dim)
    return pass_times(
        rates, gpu.sm_count, memory, calls, row.head_dim, row.causal, row.backward, row.value_dim
    )


def _alike(
    rows: Sequence[MeasuredAttention],
) -> list[tuple[list[int], Calls, MeasuredAttention]]:
    """Group rows by what `pass_times` takes one of: their indices, sizes and one of them."""

    def kind(i: int) -> tuple:
        r = rows[i]
        return r.head_dim, r.value_dim, r.q_len == 1, r.causal, r.backward

    groups = (list(g) for _, g in groupby(sorted(range(len(rows)), key=kind), key=kind))
    return [(g, _calls([rows[i] for i in g]), rows[g[0]]) for g in groups]


def _calls(rows: Sequence[MeasuredAttention]) -> Calls:
    sizes = [(r.batch, r.heads, r.kv_heads, r.q_len, r.kv_len, r.window) for r in rows]
    return Calls(*np.array(sizes, float).T)


def fit_attention(
    gpu: Gpu, memory: float, prefill: Sequence[MeasuredAttention],
    decode: Sequence[MeasuredAttention], widest: Sequence[MeasuredAttention],
    backward: float,
) -> AttentionRates:  # fmt: skip
    """Fit the constants of one GPU.

    Args:
      gpu: the GPU.
      memory: bytes of a copy per second.
      prefill, decode, widest: rows of prompts, of decoding steps, and of steps in the widest heads.
      backward: the backward pass's FLOP/s over those of the forward pass.
    """
    kernel, rows, packs, splits = KERNELS[gpu.name]
    rates = AttentionRates(
        kernel, rows, packs, 9e-6, 0.7, 0.4, 1.5 * memory, 0.3 * gpu.l2_bytes, 0.5, 0.3, 1.4,
        {}, {}, {},
    )  # fmt: skip
    rates = _fit_forward(rates, gpu, memory, prefill)
    behind = {w: _rounded(r) for w, r in _backward(rates.forward, backward).items()}
    rates = dataclasses.replace(rates, backward=behind)
    usual = fit_decode(gpu, memory, decode, splits)
    wide = fit_decode(gpu, memory, widest, splits, usual) if widest else usual
    return dataclasses.replace(rates, decode={WIDTHS[-1]: usual, _WIDEST: wide})


def _rounded(rates: TileRates) -> TileRates:
    return TileRates(float(f"{rates.flops_per_s:.4g}"), float(f"{rates.tile_s:.4g}"))


def _fit_forward(
    rates: AttentionRates, gpu: Gpu, memory: float, rows: Sequence[MeasuredAttention]
) -> AttentionRates:
    widths = [w for w in WIDTHS if any(str(r.head_dim) == w for r in rows)]
    near, peak = gpu.hbm_bytes_per_s / memory, gpu.bf16_flops
    bounds = {
        "start_s": (9e-6, 1e-6, 5e-5), "query_share": (0.7, 0.05, near),
        "key_share": (0.4, 0.05, near), "tail": (0.5, 0.01, 2.0), "spread": (0.3, 1e-3, 1.0),
        "cached_bytes_per_s": (1.5 * memory, 0.4 * memory, gpu.l2_bytes_per_s),
        "cached_bytes": (0.3 * gpu.l2_bytes, 0.05 * gpu.l2_bytes, 0.5 * gpu.l2_bytes),
        "overlap": (1.4, 1.01, 4.0),
    }  # fmt: skip
    shared = tuple(bounds)
    for w in widths:
        bounds |= {f"flops {w}": (0.6 * peak, 0.2 * peak, peak), f"tile {w}": (1e-6, 1e-9, 1e-5)}
    groups, measured = _alike(rows), np.array([r.seconds for r in rows])

    def made(values: dict[str, float]) -> AttentionRates:
        # Wider heads are never faster: no tile takes less than a narrower one's.
        tiles = np.maximum.accumulate([values[f"tile {w}"] for w in widths]).tolist()
        own = {w: TileRates(values[f"flops {w}"], t) for w, t in zip(widths, tiles, strict=True)}
        return dataclasses.replace(rates, forward=own, **{n: values[n] for n in shared})

    def times(values: dict[str, float]) -> np.ndarray:
        tried, found = made(values), np.empty(len(rows))
        for index, calls, row in groups:
            found[index] = _times(tried, gpu, memory, calls, row)
        return found

    found = made(fit(bounds, times, measured))
    return dataclasses.replace(found, forward=_all_widths(found.forward))


def _all_widths(fitted: Mapping[str, TileRates]) -> dict[str, TileRates]:
    """Add the widths without measurements: the next narrower one's FLOP/s, and a share at 64."""
    first = fitted[min(fitted, key=int)]
    made, last = {}, _rounded(_faster(first, 0.8, 1.0))
    for width in WIDTHS:
        last = fitted.get(width, last)
        made[width] = last
    return made | {_WIDEST: _rounded(_faster(last, _WIDEST_SHARE, 1.0))}


def fit_decode(
    gpu: Gpu, memory: float, rows: Sequence[MeasuredAttention], splits: int,
    narrower: DecodeRates | None = None,
) -> DecodeRates:  # fmt: skip
    """Fit the constants of decoding steps; those of wide heads are no faster than `narrower`."""
    near, sms = gpu.hbm_bytes_per_s / memory, gpu.sm_count
    bounds = {
        "start_s": (9e-6, 1e-6, 5e-5), "memory_share": (0.9, 0.3, near),
        "query_share": (0.5, 0.02, near),
        "cached_bytes_per_s": (1.5 * memory, 0.4 * memory, gpu.l2_bytes_per_s),
        "cached_bytes": (0.3 * gpu.l2_bytes, 0.05 * gpu.l2_bytes, 0.5 * gpu.l2_bytes),
        "sm_bytes_per_s": (2 * memory / sms, 0.5 * memory / sms, 20 * memory / sms),
        "tile_s": (1e-6, 1e-9, 2e-5), "width_s": (1e-6, 1e-9, 2e-5),
        "split_s": (1e-6, 1e-9, 2e-5), "overlap": (1.5, 1.01, 4.0),
    }  # fmt: skip
    fixed: dict[str, float] = {}
    if narrower is not None:
        fixed = {n: getattr(narrower, n) for n in ("cached_bytes", "cached_bytes_per_s", "overlap")}
        bounds = {n: _no_faster(n, b, getattr(narrower, n)) for n, b in bounds.items()
                  if n not in fixed}  # fmt: skip
    groups, measured = _alike(rows), np.array([r.seconds for r in rows])
    start = AttentionRates("", 128, False, 0, 1, 1, 1, 1, 0, 0, 1, {}, {}, {})

    def times(values: dict[str, float]) -> np.ndarray:
        own, found = DecodeRates(**fixed, **values, splits=splits), np.empty(len(rows))
        tried = dataclasses.replace(start, decode={_WIDEST: own})
        for index, calls, row in groups:
            found[index] = _times(tried, gpu, memory, calls, row)
        return found

    return DecodeRates(**fixed, **fit(bounds, times, measured), splits=splits)


def _no_faster(
    name: str, bounds: tuple[float, float, float], than: float
) -> tuple[float, float, float]:
    """Return bounds of a constant that make nothing faster than another value of it does."""
    _, low, high = bounds
    if name.endswith(("_share", "bytes_per_s")):
        return 0.9 * than, low / 4, than
    return 1.1 * than, than, 20 * high


def fit_training(
    rates: AttentionRates, gpu: Gpu, memory: float, rows: Sequence[MeasuredAttention]
) -> tuple[float, float]:
    """Fit by which factors training's forward and backward FLOP/s differ from prompts'.

    Only rows of one sequence count: those of two are in 8 or 16 bits, and do not say which.

    Args:
      rates: rates whose forward passes are those of prompts.
      gpu, memory: as in `fit_attention`.
      rows: measured passes of training.
    """
    rows = [r for r in rows if r.batch == 1]
    groups, measured = _alike(rows), np.array([r.seconds for r in rows])

    def times(values: dict[str, float]) -> np.ndarray:
        tried, found = in_training(rates, **values), np.empty(len(rows))
        for index, calls, row in groups:
            found[index] = _times(tried, gpu, memory, calls, row)
        return found

    values = fit({"forward": (1.1, 0.5, 1.5), "backward": (0.8, 0.2, 1.5)}, times, measured)
    return values["forward"], values["backward"]


def in_training(rates: AttentionRates, forward: float, backward: float) -> AttentionRates:
    """Return the rates of training's passes, from factors as `fit_training` returns them."""
    ahead = {w: _faster(r, forward, 1.0) for w, r in rates.forward.items()}
    return dataclasses.replace(rates, forward=ahead, backward=_backward(rates.forward, backward))


def _backward(forward: Mapping[str, TileRates], faster: float) -> dict[str, TileRates]:
    """Return the backward passes' rates, whose tiles wait longer as they have more products."""
    return {w: _faster(r, faster, _BACKWARD_PRODUCTS) for w, r in forward.items()}


def _faster(rates: TileRates, flops: float, tile: float) -> TileRates:
    return TileRates(rates.flops_per_s * flops, rates.tile_s * tile)
