"""Numbers and terms as a reader sees them: three digits, a unit, the field's terms."""

import math

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))

READINGS: dict[str, str] = {
    "tps": "tokens per second over all devices",
    "inv_tps": "1/TPS",
    "inv_tps_us_printed_ms": "1/TPS in microseconds, printed as milliseconds",
    "sync_overhead_per_token": "synchronisation and communication per token, by the paper's words",
    "other": "as printed",
}

BOUNDS: dict[str, str] = {
    "compute": "compute",
    "weights from HBM": "reading weights from HBM",
    "weights and KV cache from HBM": "reading weights and KV cache from HBM",
    "weights from L2": "reading weights from L2",
    "weights and KV cache from L2": "reading weights and KV cache from L2",
    "NVLink": "NVLink",
    "network": "the network",
}

PHASES: dict[str, str] = {
    "prefill": "one forward pass of the whole batch",
    "decode": "one decoding step, a new token of every sequence",
    "train": "one training step",
}

# What a modelled step is in each phase.
STEPS: dict[str, str] = {
    "prefill": "TTFT of the batch",
    "decode": "TPOT",
    "train": "step",
}

LENSES = ("verify", "compile", "predict", "measure")


def digits(value: float, count: int = 3) -> str:
    """Format `value` to `count` significant digits, without an exponent: 0.987, 84.9, 1020."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{count - 1}e}")
    decimals = max(0, count - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def _scaled(value: float, unit: str, count: int) -> str:
    for size, prefix in _PREFIXES:
        if abs(value) >= size * 0.9995:
            return f"{digits(value / size, count)} {prefix}{unit}"
    return f"{digits(value, count)} {unit}"


def in_bytes(value: float) -> str:
    """Format bytes in decimal units: 84.9 GB."""
    return _scaled(value, "B", 3)


def in_flops(value: float) -> str:
    """Format FLOPs in decimal units: 3.21 PFLOP."""
    return _scaled(value, "FLOP", 3)


def in_seconds(value: float) -> str:
    """Format seconds in the unit that suits them: 31.2 ms."""
    if not value:
        return "0 s"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= size * 0.9995:
            return f"{digits(value / size)} {unit}"
    return f"{digits(value / 1e-9)} ns"


def in_tokens_per_s(value: float) -> str:
    """Format a throughput: 1.45M tokens/s; in full below 100,000."""
    if value >= 999_500:
        return f"{digits(value / 1e6)}M tokens/s"
    return f"{digits(value / 1e3)}k tokens/s" if value >= 1e5 else f"{value:,.0f} tokens/s"


def ratio(value: float) -> str:
    """Format a ratio as 1.00 only where it is 1, with more digits where they differ."""
    text = f"{value:.2f}"
    return f"{value:.4f}" if text == "1.00" and abs(value - 1) > 1e-9 else text


def times(value: float) -> str:
    """Format a factor: 4.4x, 12x."""
    return f"{digits(value, 2)}x"


def percent(share: float) -> str:
    """Format a share: 12 %, 0.3 % or <0.1 % where it is small, 100 % only if it is all."""
    value = share * 100
    if 99.5 <= value < 100:
        return f"{value:.1f} %" if value < 99.95 else ">99.9 %"
    if value == 0 or value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.1 else "<0.1 %"


def share_of(part: float, whole: float) -> str:
    """Format a part of a whole: none, all, or 3 of 5."""
    return "none" if not part else "all" if part == whole else f"{part:,} of {whole:,}"


def error(value: float) -> str:
    """Format a relative error: 3.1e-16."""
    return f"{value:.1e}".replace("e-0", "e-") if math.isfinite(value) else "not finite"


def quantity(value: float, unit: str) -> str:
    """Format a figure as its unit is written."""
    if unit == "tokens/s":
        return in_tokens_per_s(value)
    if unit == "s":
        return in_seconds(value)
    if unit == "B":
        return in_bytes(value)
    return f"{value:,.10g} {unit}"


def counted(number: int, noun: str, many: str = "") -> str:
    """Format a number of things: 1 device, 1,024 devices; `many` is a plural not in s."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"


def tokens(batch: int, seq_len: int) -> str:
    """Format a batch and its length: 1,024 x 10,000 tokens."""
    return f"{batch:,} x {counted(seq_len, 'token')}"


def axes_name(axes: tuple[str, ...] | None) -> str:
    """Format the mesh axes of a collective."""
    return "(no mesh axes)" if axes is None else " x ".join(axes)


def markdown_row(*cells: str) -> str:
    """Format a row of a Markdown table; a | in a cell does not end it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def one_line(text: object) -> str:
    """Return a foreign text without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
