"""The bytes of ragged all-to-alls: rows sent depend on data, the program has only a buffer."""

import dataclasses
from collections.abc import Callable, Sequence

from parallax.hlo.collectives import Collective
from parallax.hlo.module import Instruction
from parallax.hlo.shapes import HloError, Shape

RaggedBytes = Callable[[Collective], float | None]
# Rows to send, buffer to receive into, and offsets and counts: two of the sender, two of receivers.
_OPERANDS = 6


def with_ragged_bytes(collective: Collective, ragged_bytes: RaggedBytes | None) -> Collective:
    """Return a collective with the bytes the caller derived, or marked as an upper bound.

    The bound, the whole buffer, holds where no row goes to two devices, as in every exchange of
    sorted rows.

    Raises:
      HloError: derived bytes are negative or more than the buffer holds.
    """
    if not collective.ragged:
        return collective
    derived = ragged_bytes(collective) if ragged_bytes else None
    if derived is None:
        return dataclasses.replace(collective, is_bound=True)
    if not 0 <= derived <= collective.payload_bytes:
        raise HloError(
            f"ragged_bytes of {collective.kind} over {collective.axes}: expected 0 to its buffer's "
            f"{collective.payload_bytes} bytes, got {derived}. Count the rows of one execution "
            "that leave one device, each once."
        )
    return dataclasses.replace(collective, wire_bytes=float(derived))


def check_ragged(
    instruction: Instruction, operands: Sequence[Shape], result: Shape, group_size: int
) -> None:
    """Raise HloError unless operands and result are those of a ragged all-to-all."""
    context = f"line {instruction.line}: %{instruction.name} (ragged-all-to-all)"
    if len(operands) != _OPERANDS:
        raise HloError(f"{context}: expected {_OPERANDS} operands, got {len(operands)}.")
    rows, buffer, *tables = operands
    if result.elements and len(result.elements) == 1:
        result = result.elements[0]
    if result != buffer or not rows.dims:
        raise HloError(f"{context}: received over {buffer}, expected that back, got {result}.")
    if (rows.dtype, rows.dims[1:]) != (buffer.dtype, buffer.dims[1:]):
        raise HloError(f"{context}: rows of {rows} do not fit those of {buffer}.")
    for table in tables:
        integers = table.dtype[0] in "su" and len(table.dims) == 1
        if not integers or table != tables[0] or table.dims[0] % group_size or not table.dims[0]:
            raise HloError(
                f"{context}: expected four equal tables of integers, a multiple of the group's "
                f"{group_size} long, got {table}."
            )
