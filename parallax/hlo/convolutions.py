"""The sizes of convolutions, from their windows, dimension labels and groups."""

import math
import re

from parallax.hlo.limits import short
from parallax.hlo.module import Instruction
from parallax.hlo.shapes import HloError, Shape

_LABELS = re.compile(r"([0-9a-z?]{2,64})_([0-9a-z?]{2,64})->([0-9a-z?]{2,64})")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def convolution_sizes(
    i: Instruction, inside: Shape, kernel: Shape, out: Shape
) -> tuple[int, int, int, int]:
    """Return (groups, m, n, k) of the product [m, k] x [k, n] that a convolution is.

    m are output positions, n output features of a group, k the kernel's window times its input
    features. Positions in padding count, as kernels compute them; the zeros between elements that
    lhs_dilate spreads do not.

    Args:
      i: the instruction, with dim_labels and, where spatial dims exist, a window.
      inside, kernel, out: shapes of the forward convolution, whichever of them is the result.

    Raises:
      HloError: shapes and attributes do not agree.
    """
    context = f"line {i.line}: %{i.name}"
    labels = _LABELS.fullmatch(i.attributes.get("dim_labels", ""))
    if labels is None:
        raise HloError(f"{context}: dim_labels of a convolution are not understood.")
    spatial = sorted(label for label in labels[2] if label.isdigit())
    try:
        a, b, c = (
            {label: shape.dims[labels[n].index(label)] for label in (*spatial, *wanted)}
            for n, shape, wanted in ((1, inside, "bf"), (2, kernel, "io"), (3, out, "bf"))
        )
    except (ValueError, IndexError):
        raise HloError(f"{context}: dim_labels do not fit its shapes.") from None
    ranks = [len(shape.dims) == len(labels[n]) for n, shape in ((1, inside), (2, kernel), (3, out))]
    groups, batches = (_count(i, key) for key in ("feature_group_count", "batch_group_count"))
    window = _window(i, len(spatial))
    fits = all(ranks) and a["f"] == b["i"] * groups and c["f"] == b["o"]
    fits = fits and a["b"] == c["b"] * batches and c["f"] % (groups * batches) == 0
    positions = 1
    for label, (size, stride, low, high, spread, apart) in zip(spatial, window, strict=True):
        whole = (a[label] - 1) * spread + 1 + low + high if a[label] else low + high
        reach = (size - 1) * apart + 1
        fits = fits and size == b[label] and c[label] == max(0, (whole - reach) // stride + 1)
        positions *= -(-c[label] // spread)
    if not fits:
        raise HloError(
            f"{context}: a convolution of {inside.dims} with {kernel.dims} is not {out.dims}."
        )
    k = math.prod(b[label] for label in spatial) * b["i"]
    parts = groups * batches
    return parts, c["b"] * positions, c["f"] // parts, k


def _count(i: Instruction, key: str) -> int:
    text = i.attributes.get(key, "1")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise HloError(f"line {i.line}: %{i.name}: {key}={short(text)}: expected a number.")
    return int(text)


def _window(i: Instruction, rank: int) -> list[tuple[int, int, int, int, int, int]]:
    """Return (size, stride, padding before and after, lhs and rhs dilation) of each spatial dim."""
    text = i.attributes.get("window", "{}").strip("{}")
    fields: dict[str, str] = {}
    for part in text.split():
        key, _, value = part.partition("=")
        fields[key] = value

    def numbers(key: str, default: str) -> list[list[int]]:
        parts = fields.get(key, "x".join([default] * rank)).split("x") if rank else []
        values = [part.split("_") for part in parts]
        width = 2 if key == "pad" else 1
        if len(values) != rank or any(
            len(v) != width or not all(_NUMBER.fullmatch(n) for n in v) for v in values
        ):
            raise HloError(f"line {i.line}: %{i.name}: window {short(text)} is not understood.")
        return [[int(n) for n in v] for v in values]

    sizes, strides = numbers("size", "1"), numbers("stride", "1")
    pads = numbers("pad", "0_0")
    spreads, aparts = numbers("lhs_dilate", "1"), numbers("rhs_dilate", "1")
    window = [
        (size, stride, low, high, spread, apart)
        for (size,), (stride,), (low, high), (spread,), (apart,) in zip(
            sizes, strides, pads, spreads, aparts, strict=True
        )
    ]
    if any(min(size, stride, spread, apart) < 1 for size, stride, _, _, spread, apart in window):
        raise HloError(f"line {i.line}: %{i.name}: window {short(text)} is not understood.")
    return window
