"""The fit of matrix products per GPU and dtype, and of what each source's clock adds."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from parallax.cost.fitting import predicted_gemms, product_sizes
from parallax.cost.gemm import GemmRates, gemm_times
from parallax.cost.measurements import MeasuredGemm, gemms
from parallax.meshes.gpus import Gpu
from parallax.studies.fitting.robust import fit

# The source whose times predictions are for: kernels in a row, with nothing between them.
REFERENCE = "aiconfigurator_gemm"
# FLOP/s of large products of an H100 that its power limit allows in the long run (published), over
# those of short runs; taken for other GPUs too.
SUSTAINED_SHARE = 794e12 / 859e12
INT8_SHARE = 0.9  # of the ratio of peaks by which INT8 products are faster; assumed
_NO_CLOCK = 1e-9


class Products(NamedTuple):
    """The rates of products, and the seconds that the clocks of sources count beside a kernel."""

    rates: GemmRates
    clocks: dict[str, float]


def half_rows(gpu: str) -> list[MeasuredGemm]:
    """Return the measured products of a GPU with operands of 16 bits."""
    return [r for r in gemms() if r.gpu == gpu and r.dtype in ("bfloat16", "float16")]


def fit_products(gpu: Gpu, rows: Sequence[MeasuredGemm]) -> Products:
    """Fit the rates of products of 16 bits."""
    peak, memory = gpu.bf16_flops, gpu.hbm_bytes_per_s
    return _fit(gpu, rows, peak, memory, {})


def _fit(
    gpu: Gpu, rows: Sequence[MeasuredGemm], peak: float, memory: float, known: dict[str, float]
) -> Products:
    bounds = {
        "flops_per_s": (0.8 * peak, 0.2 * peak, peak),
        "bytes_per_s": (0.9 * memory, 0.2 * memory, memory),
        "start_s": (2.5e-6, 5e-7, 2e-5), "tile_s": (1.5e-6, 1e-8, 2e-5),
        "split_s": (2.5e-6, 1e-7, 2e-5), "overlap": (2.5, 1.01, 10.0),
    }  # fmt: skip
    shared = tuple(bounds)
    others = sorted({r.source for r in rows} - {REFERENCE} - set(known))
    bounds |= dict.fromkeys(others, (3e-06, _NO_CLOCK, 4e-05))
    sizes, measured = product_sizes(rows), np.array([r.seconds for r in rows])

    def made(values: dict[str, float]) -> Products:
        own = {name: values[name] for name in shared}
        sustained = float(f"{SUSTAINED_SHARE * own['flops_per_s']:.4g}")
        clocks = known | {source: values[source] for source in others}
        return Products(GemmRates(**own, sustained_flops_per_s=sustained), clocks)

    def times(values: dict[str, float]) -> np.ndarray:
        tried = made(values)
        return gemm_times(tried.rates, gpu.sm_count, *sizes) + _beside(tried, rows)

    return made(fit(bounds, times, measured))


def predicted(products: Products, gpu: Gpu, rows: Sequence[MeasuredGemm]) -> np.ndarray:
    """Estimate the seconds [r] of measured products by the clocks of their sources."""
    return predicted_gemms(products.rates, rows, gpu.sm_count) + _beside(products, rows)


def _beside(products: Products, rows: Sequence[MeasuredGemm]) -> np.ndarray:
    return np.array([products.clocks.get(r.source, 0.0) for r in rows])


def gemm_of(gpu: Gpu) -> dict[str, GemmRates]:
    """Fit a GPU's products of 16 bits; other dtypes are theirs, scaled by peaks, or measured."""
    half = fit_products(gpu, half_rows(gpu.name))

    def scaled(share: float) -> GemmRates:
        names = "flops_per_s", "sustained_flops_per_s"
        flops = {n: float(f"{getattr(half.rates, n) * share:.4g}") for n in names}
        return dataclasses.replace(half.rates, **flops)

    peaks = {"tf32": gpu.tf32_flops, "s8": INT8_SHARE * gpu.int8_flops, "f32": gpu.fp32_flops,
             "f64": gpu.fp64_flops}  # fmt: skip
    made = {"f16": half.rates} | {d: scaled(p / gpu.bf16_flops) for d, p in peaks.items()}
    own = [r for r in gemms() if r.gpu == gpu.name and r.dtype == "tensorfloat32"]
    if own:
        made["tf32"] = _fit(gpu, own, gpu.tf32_flops, gpu.hbm_bytes_per_s, half.clocks).rates
    return made
