"""Calibration: constants measured and fitted on the GPU at hand, with held-out errors."""

import dataclasses
import datetime
import statistics
from collections.abc import Callable
from typing import Any

from parallax.codec import encode
from parallax.commands.calibrate_links import HeldOut, fit_links, relative_errors
from parallax.cost.attention import attention_seconds
from parallax.cost.fitting import fit_gemm, predicted_gemm, split, spread
from parallax.cost.measurements import MeasuredAttention
from parallax.cost.rates import Rates, rates_of
from parallax.lenses.benchmarking import Measured, measure_device
from parallax.lenses.device_process import run_on_devices
from parallax.meshes.gpus import GPUS, Gpu

# Fewer rows than this do not determine the constants.
_LEAST_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Fitted constants, with their errors on the rows that were held out.

    Attributes:
      rates: the constants, to be saved and passed as `--rates`.
      measured: the measurements that they were fitted to.
      held_out: term -> (rows, median error, 90th percentile of the error), relative; collectives by
        kind, inside nodes and between them.
    """

    rates: Rates
    measured: Measured
    held_out: HeldOut

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for measured.json: every measurement, and the errors."""
        return encode(self.measured) | {"held_out": self.held_out}


def calibrate(
    *, environment: dict[str, str] | None = None, on_progress: Callable[[str], None]
) -> Calibration:
    """Measure the GPU at hand and fit the constants, in a child or on all processes' devices.

    Where several processes were started, all of them call it and have the same rates of links; the
    other constants are those of each process's first device.

    Args:
      environment: environment variables of the child.
      on_progress: called with one line per group of measurements.

    Raises:
      ValueError: there is no GPU of a kind that the cost model knows, or the nodes have different
        numbers of them.

    Cost: at most five minutes.
    """
    kind = run_on_devices(_device_kind, environment=environment or {})
    gpu = next((g for g in GPUS.values() if g.device_kind == kind), None)
    if gpu is None:
        known = ", ".join(g.device_kind for g in GPUS.values())
        raise ValueError(
            f"calibrate: the device at hand is {kind!r}. It needs a GPU that the cost model knows: "
            f"{known}."
        )
    measured = run_on_devices(
        measure_device, gpu.name, environment=environment or {}, on_progress=on_progress
    )
    return fit(measured, gpu)


def fit(measured: Measured, gpu: Gpu, base: Rates | None = None) -> Calibration:
    """Fit the constants that explain what was measured; the others keep their shipped values.

    Args:
      measured: the measurements.
      gpu: the kind of GPU.
      base: constants to start from; None takes those shipped for the GPU.
    """
    held_out: HeldOut = {}
    rates = _fit_products(base or rates_of(gpu.name), measured, gpu, held_out)
    rates = fit_links(rates, measured, held_out)
    rates = _fit_attention(rates, measured, gpu)
    rates = _fit_memory(rates, measured, gpu)
    rates = _fit_power(rates, measured)
    rates = dataclasses.replace(
        rates,
        name=f"{gpu.name}, calibrated",
        launch_s=measured.launch_s,
        sources=_sources(rates, measured, "launches"),
        version=datetime.date.today().isoformat(),
    )
    return Calibration(rates, measured, held_out)


def _sources(rates: Rates, measured: Measured, term: str, more: str = "") -> dict[str, str]:
    """Return the sources of the rates, with one term now measured here."""
    return {**rates.sources, term: f"measured on {measured.device}{more}"}


def _fit_products(rates: Rates, measured: Measured, gpu: Gpu, held_out: HeldOut) -> Rates:
    to_fit, held = split(measured.gemms)
    if len(to_fit) < _LEAST_ROWS:
        return rates
    fitted = fit_gemm(to_fit, gpu.sm_count, rates.gemm["f16"])

    def modelled(rows: list) -> list[float]:
        return [predicted_gemm(fitted, row, gpu.sm_count) for row in rows]

    held_out["matrix products"] = relative_errors(modelled(held), held)
    apart = spread(modelled(to_fit), [row.seconds for row in to_fit])
    return dataclasses.replace(
        rates,
        gemm={**rates.gemm, "f16": fitted},
        spreads={**rates.spreads, "matrix products": apart},
        sources=_sources(rates, measured, "matrix products", f", {len(to_fit)} products fitted"),
    )


def _fit_attention(rates: Rates, measured: Measured, gpu: Gpu) -> Rates:
    if not measured.attention:
        return rates
    passes, shipped = dict(rates.attention.forward), rates.attention
    for width in sorted({row.head_dim for row in measured.attention}):
        mine = [row for row in measured.attention if row.head_dim == width]
        faster = statistics.median(_modelled(rates, row, gpu) / row.seconds for row in mine)
        own = shipped.of_width(width)
        passes[str(width)] = dataclasses.replace(own, flops_per_s=faster * own.flops_per_s)
    return dataclasses.replace(
        rates,
        attention=dataclasses.replace(shipped, forward=passes),
        sources=_sources(rates, measured, "attention"),
    )


def _modelled(rates: Rates, row: MeasuredAttention, gpu: Gpu) -> float:
    return attention_seconds(
        rates.attention, gpu.sm_count, rates.memory_bytes_per_s, batch=row.batch, heads=row.heads,
        kv_heads=row.kv_heads, q_len=row.q_len, kv_len=row.kv_len, head_dim=row.head_dim,
        causal=row.causal,
    )  # fmt: skip


def _fit_memory(rates: Rates, measured: Measured, gpu: Gpu) -> Rates:
    inside = [rate for mb, rate in measured.sweep if mb * 1e6 <= 0.5 * gpu.l2_bytes]
    l2 = max(inside, default=rates.l2_bytes_per_s)
    return dataclasses.replace(
        rates,
        memory_bytes_per_s=measured.copy_bytes_per_s,
        l2_bytes_per_s=max(l2, measured.copy_bytes_per_s),
        l2_share=_l2_share(measured, gpu, l2) or rates.l2_share,
        sources=_sources(
            rates, measured, "memory", ": a copy, and a sweep of working sets for the cache"
        ),
    )


def _fit_power(rates: Rates, measured: Measured) -> Rates:
    if measured.idle_w is None or measured.busy_w is None:
        return rates
    flop = (measured.busy_w - measured.idle_w) / (0.9 * rates.gemm["f16"].flops_per_s)
    power = dataclasses.replace(rates.power, idle_w=measured.idle_w, flop_j=max(0.0, 0.8 * flop))
    return dataclasses.replace(
        rates, power=power, sources=_sources(rates, measured, "power", ", NVML")
    )


def _l2_share(measured: Measured, gpu: Gpu, l2: float) -> float | None:
    """Return the largest share of the cache whose working set runs at over 80 % of its rate."""
    fast = [mb * 1e6 for mb, rate in measured.sweep if rate >= 0.8 * l2]
    return min(1.0, max(fast) / gpu.l2_bytes) if fast else None


def _device_kind(*, on_progress: Any) -> str:
    import jax

    return jax.devices()[0].device_kind
