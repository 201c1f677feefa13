"""The storage formats of weight matrices, to the byte: values, scales and sparsity positions."""

import math
import re
from dataclasses import dataclass

_SCALE_BYTES = 4  # float32
_NAME = re.compile(
    r"(float64|float32|float16|bfloat16|int8|w8a8|int4)(?:/(\d+))?(?:\+(\d+):(\d+))?"
)
_BITS = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int8": 8,
    "w8a8": 8,
    "int4": 4,
}
_INT4_GROUP = 128


@dataclass(frozen=True)
class Format:
    """A format that stores a matrix [inputs, outputs].

    Attributes:
      name: the name in tables and flags.
      bits: bits per stored value.
      group: inputs that share a scale for each output; 0 is all of them (one scale per output
        channel), None is no scale.
      kept, of: N:M sparsity along the inputs: `kept` of every `of` values; equal if dense.
      activation_bits: bits that activations are rounded to before the product, with one scale per
        token; None leaves them unchanged.
    """

    name: str
    bits: int
    group: int | None = None
    kept: int = 1
    of: int = 1
    activation_bits: int | None = None

    @property
    def sparse(self) -> bool:
        """Whether only some of the values are stored."""
        return self.kept < self.of

    @property
    def packs(self) -> bool:
        """Whether values are integers with scales, or sparse; otherwise a weight is an array."""
        return self.sparse or self.group is not None

    @property
    def position_bits(self) -> int:
        """The bits per kept value that store its position in its run."""
        return (self.of - 1).bit_length() if self.sparse else 0

    @property
    def multiple(self) -> int:
        """The number that inputs must be a multiple of: whole runs, groups and bytes."""
        run_bits = self.kept * self.bits, self.kept * self.position_bits
        bytes_run = [self.of * 8 // math.gcd(bits, 8) for bits in run_bits if bits]
        return math.lcm(self.of, self.group or 1, *bytes_run)

    def n_bytes(self, inputs: int, outputs: int) -> int:
        """Return the bytes of one matrix: packed values, packed positions, float32 scales.

        Raises:
          ValueError: inputs that are not a multiple of `multiple`.
        """
        self.check(inputs)
        values = inputs // self.of * self.kept * outputs
        packed = values * (self.bits + self.position_bits) // 8
        if self.group is None:
            return packed
        return packed + inputs // (self.group or inputs) * outputs * _SCALE_BYTES

    def check(self, inputs: int, context: str = "a matrix") -> None:
        """Raise ValueError unless the format can store a matrix with that many inputs."""
        if inputs < 1 or inputs % self.multiple:
            raise ValueError(
                f"{context}: format {self.name!r} stores inputs in multiples of {self.multiple} "
                f"(whole runs, groups and bytes), got {inputs}. Use a multiple of {self.multiple}, "
                "or another format."
            )

    @property
    def bits_per_weight(self) -> float:
        """The bits per weight of a large matrix, without scales."""
        return (self.bits + self.position_bits) * self.kept / self.of


def parse_format(name: str) -> Format:
    """Parse `DTYPE[/GROUP][+N:M]`, such as `int8`, `int4/64`, `float16+2:4` or `int8+4:8`.

    DTYPE is float64, float32, float16, bfloat16, int8 (one scale per output channel), w8a8 (int8
    activations too, one scale per token) or int4 (one scale per group of 128 inputs, or of GROUP).

    Raises:
      ValueError: any other text.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown format {name!r}. Expected DTYPE[/GROUP][+N:M] with DTYPE one of "
            f"{', '.join(_BITS)}; for example {', '.join(FORMATS)}."
        )
    dtype, group, kept, of = match[1], match[2], int(match[3] or 1), int(match[4] or 1)
    if (group is not None and (not dtype.startswith("int") or int(group) < 1)) or not (
        1 <= kept <= of <= 256 and (match[3] is None or kept < of)
    ):
        raise ValueError(
            f"format {name!r}: groups go with int8 and int4 and have at least one input; N:M keeps "
            "fewer than M of M, M at most 256."
        )
    if dtype == "w8a8" and match[3] is not None:
        raise ValueError(
            f"format {name!r}: sparse weights are multiplied in the model's dtype. Use int8 "
            "instead of w8a8."
        )
    shared = int(group) if group else {"int8": 0, "w8a8": 0, "int4": _INT4_GROUP}.get(dtype)
    return Format(name, _BITS[dtype], shared, kept, of, 8 if dtype == "w8a8" else None)


# In the order in which a search tries them: the least compressed first.
FORMATS: dict[str, Format] = {}
for _name in ("float32", "float16", "bfloat16", "float16+2:4", "int8", "int8+2:4", "int4",
              "int4+2:4"):  # fmt: skip
    FORMATS[_name] = parse_format(_name)
