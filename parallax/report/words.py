"""Numbers as a reader wants them."""

from parallax.results import Figure

_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))

READINGS = {
    "tps": "tokens a second, all devices",
    "inv_tps": "1 / TPS: not the time per output token of a request",
    "inv_tps_us_printed_ms": "1 / TPS in microseconds, printed as milliseconds",
    "sync_overhead_per_token": "defined as synchronisation and communication overhead per token",
    "other": "as printed",
}


def scaled(value: float, unit: str) -> str:
    """`1.23 GB`: three significant digits and a decimal prefix."""
    for scale, prefix in _SCALES:
        if abs(value) >= scale or scale == 1.0:
            return f"{value / scale:.3g} {prefix}{unit}".rstrip()
    raise AssertionError


def tokens_per_s(value: float) -> str:
    """`1.45 M tokens/s`."""
    return scaled(value, "").strip() + " tokens/s"


def seconds(value: float) -> str:
    """`1.23 s`, `12.3 ms`, `4.5 us`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def figure(value: Figure) -> str:
    """A figure with its interval, without its tag."""
    shown = seconds(value.value) if value.unit == "s" else scaled(value.value, value.unit)
    if value.low is not None and value.high is not None and value.unit == "s":
        return f"{shown} ({seconds(value.low)} to {seconds(value.high)})"
    return shown


def times(ratio: float) -> str:
    """A ratio: `1.00x`, `4.4x`, `12x`."""
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def axes(names: tuple[str, ...] | None) -> str:
    """Mesh axes of a collective."""
    return "no set of axes" if names is None else " x ".join(names) or "-"
