"""The fit of experts: their products, and the dispatch and combine of their rows, per GPU."""

from collections.abc import Sequence

import numpy as np

from parallax.cost.experts import (
    COMBINE_ITEM,
    DISPATCH_ITEM,
    GroupedRates,
    Groups,
    RowExchangeRates,
    RowExchanges,
    grouped_times,
    power_law_skew,
    row_exchange_times,
)
from parallax.cost.measurements import MeasuredDispatch, MeasuredExperts, dispatches, experts
from parallax.meshes.gpus import Gpu
from parallax.studies.fitting.robust import fit

# GPU -> the kernel that predictions are for.
KERNELS = {
    "h100": "triton_tritonexperts",
    "h200": "triton_tritonexperts",
    "b200": "flashinfer_trtllm_trtllmbf16experts",
}
ITEMS = {"dispatch_s": DISPATCH_ITEM, "combine_s": COMBINE_ITEM}


def grouped_rows(gpu: str, kernel: str | None = None) -> list[MeasuredExperts]:
    """Return the measured MLPs over experts of a GPU, with the kernel that predictions are for."""
    return [r for r in experts() if r.gpu == gpu and r.kernel == (kernel or KERNELS[gpu])]


def exchange_rows(gpu: str) -> list[MeasuredDispatch]:
    """Return the measured exchanges of rows of a GPU, of any number of nodes."""
    return [r for r in dispatches() if r.gpu == gpu]


def skew_of(row: MeasuredExperts) -> float:
    """Return the rows of the busiest expert over the mean of a measured MLP."""
    if row.loads == "balanced":
        return 1.0
    alpha = float(row.loads.removeprefix("power_law_"))
    return power_law_skew(alpha, row.tokens, row.experts, row.top_k)


def _groups(rows: Sequence[MeasuredExperts]) -> Groups:
    sizes = [(r.tokens, r.hidden, r.inter, r.top_k, r.experts, r.tensor, r.expert, skew_of(r))
             for r in rows]  # fmt: skip
    return Groups(*np.array(sizes, float).T)


def predicted_grouped(rates: GroupedRates, gpu: Gpu, rows: Sequence[MeasuredExperts]) -> np.ndarray:
    """Estimate the seconds [r] of measured MLPs over experts."""
    return grouped_times(rates, gpu.sm_count, _groups(rows))


def fit_grouped(gpu: Gpu, rows: Sequence[MeasuredExperts]) -> GroupedRates:
    """Fit the constants of MLPs over experts."""
    peak, memory = gpu.bf16_flops, gpu.hbm_bytes_per_s
    bounds = {
        "flops_per_s": (0.6 * peak, 0.1 * peak, peak), "bytes_per_s": (0.7 * memory, 0.1 * memory,
        memory), "start_s": (2e-5, 1e-6, 1e-4), "tile_s": (2e-6, 1e-8, 2e-5),
        "expert_s": (3e-7, 1e-9, 1e-5), "all_rows": (0.5, 0.01, 4.0), "overlap": (2.0, 1.01, 6.0),
    }  # fmt: skip
    kernel, sizes = rows[0].kernel, _groups(rows)

    def times(values: dict[str, float]) -> np.ndarray:
        return grouped_times(GroupedRates(kernel, **values), gpu.sm_count, sizes)

    return GroupedRates(kernel, **fit(bounds, times, np.array([r.seconds for r in rows])))


def _exchanges(rows: Sequence[MeasuredDispatch]) -> RowExchanges:
    sizes = [(r.tokens, r.hidden, r.top_k, r.sms, r.nodes, r.devices // r.nodes) for r in rows]
    return RowExchanges(*np.array(sizes, float).T)


def predicted_exchange(
    rates: RowExchangeRates, rows: Sequence[MeasuredDispatch], direction: str
) -> np.ndarray:
    """Estimate the seconds [r] of measured exchanges; the direction is a name of `ITEMS`."""
    return row_exchange_times(rates, _exchanges(rows), ITEMS[direction])


def fit_exchange(
    gpu: Gpu, rows: Sequence[MeasuredDispatch], across: Sequence[MeasuredDispatch], direction: str
) -> RowExchangeRates:
    """Fit the constants of one direction of the exchange of rows.

    Args:
      gpu: the GPU.
      rows: measured exchanges inside a node of it.
      across: measured exchanges over nodes, of any GPU: their network is what counts.
      direction: a name of `ITEMS`.
    """
    link, card = gpu.nvlink_bytes_per_s, gpu.nic_bytes_per_s
    inside = {
        "start_s": (3e-5, 5e-6, 1e-4), "link_bytes_per_s": (0.6 * link, 0.05 * link, link),
        "sm_bytes_per_s": (2e10, 2e9, 2e11), "token_s": (5e-7, 1e-9, 1e-5),
    }  # fmt: skip
    over = {"node_s": (5e-6, 1e-8, 1e-4), "network_bytes_per_s": (0.8 * card, 0.1 * card, card),
            "far_bytes_per_s": (0.5 * card, 0.1 * card, card)}  # fmt: skip
    fixed = {name: first for name, (first, _, _) in over.items()}

    def fitted(bounds: dict, known: dict[str, float], of: Sequence[MeasuredDispatch]) -> dict:
        sizes, measured = _exchanges(of), np.array([getattr(r, direction) for r in of])
        return fit(
            bounds,
            lambda v: row_exchange_times(RowExchangeRates(**known, **v), sizes, ITEMS[direction]),
            measured,
        )

    found = fitted(inside, fixed, rows)
    return RowExchangeRates(**found, **fitted(over, found, across))
