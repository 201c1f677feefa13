"""How a weight matrix is stored, to the byte: values, scales, positions of what sparsity kept."""

import math
from dataclasses import dataclass

_SCALE_BYTES = 4  # float32


@dataclass(frozen=True)
class Format:
    """One way to store a matrix [inputs, outputs].

    Attributes:
      name: as tables and flags have it.
      bits: of one stored value.
      group: inputs that share a scale with each output; 0 is all of them (one scale an output
        channel), None is no scale.
      kept, of: N:M sparsity along the inputs: `kept` of every `of` values; equal where dense.
    """

    name: str
    bits: int
    group: int | None = None
    kept: int = 1
    of: int = 1

    @property
    def position_bits(self) -> int:
        """Of one kept value: where in its run it stands."""
        return (self.of - 1).bit_length() if self.kept < self.of else 0

    def n_bytes(self, inputs: int, outputs: int) -> int:
        """Bytes of one matrix; values, positions and scales each packed and rounded up once.

        Raises:
          ValueError: inputs that runs or groups do not divide.
        """
        for what, size in (("runs of", self.of), ("groups of", self.group or 1)):
            if inputs % size:
                raise ValueError(
                    f"format {self.name!r}: a matrix of {inputs} inputs is no whole number of "
                    f"{what} {size}. Use a multiple of {size}, or another format."
                )
        values = inputs // self.of * self.kept * outputs
        packed = math.ceil(values * self.bits / 8) + math.ceil(values * self.position_bits / 8)
        if self.group is None:
            return packed
        groups = inputs // self.group if self.group else 1
        return packed + groups * outputs * _SCALE_BYTES

    @property
    def bits_a_weight(self) -> float:
        """Of a large matrix, scales left out."""
        return (self.bits + self.position_bits) * self.kept / self.of


# The mildest first: what a search tries in this order.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("float32", 32),
        Format("float16", 16),
        Format("bfloat16", 16),
        Format("float16+2:4", 16, None, 2, 4),
        Format("int8", 8, 0),
        Format("int8+2:4", 8, 0, 2, 4),
        Format("int4", 4, 128),
        Format("int4+2:4", 4, 128, 2, 4),
    )
}
