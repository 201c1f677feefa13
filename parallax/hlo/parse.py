"""The parser of HLO text into computations and instructions."""

import re

from parallax.hlo.limits import MAX_DEVICES, short
from parallax.hlo.lines import module_lines
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.operands import elements, parse_operands, skip_balanced, split_commas
from parallax.hlo.platform import platform_of
from parallax.hlo.shapes import HloError, parse_shape
from parallax.hlo.source import TABLES, SourceTables, is_table_row, read_tables
from parallax.hlo.validate import check_module

__all__ = ["Computation", "HloError", "Instruction", "Module", "parse_module"]

_COMPUTATION = re.compile(r"(ENTRY )?\s*%?([^\s(){}%]+)\s*(\(.* -> .*)?\{")
_END = re.compile(r'\}(, execution_thread="[^"]*")?')
_INSTRUCTION = re.compile(r"(ROOT )?\s*%?([^\s%]+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_KEY = re.compile(r"[A-Za-z0-9_\-]+")


def parse_module(text: str) -> Module:
    """Parse `compiled.as_text()`, or a dump of XLA's.

    Raises:
      HloError: the text has anything that is not understood; names the line.
    """
    lines = module_lines(text)
    start = next(n for n, line in enumerate(lines) if line)
    name, _, rest = lines[start].removeprefix("HloModule ").partition(",")
    attributes = _attributes(rest, start + 1)
    _check_devices(attributes, start + 1)
    entry, computations, tables = _computations(lines, start + 1)
    if entry is None:
        raise HloError(f"module {name}: no ENTRY computation: text is cut off.")
    module = Module(name, attributes, computations, entry, tables, platform_of(text))
    check_module(module)
    return module


def _check_devices(attributes: dict[str, str], number: int) -> None:
    partitions = attributes.get("num_partitions", "1")
    if not (re.fullmatch(r"[0-9]{1,9}", partitions) and 1 <= int(partitions) <= MAX_DEVICES):
        raise HloError(
            f"line {number}: num_partitions={short(partitions)}: expected a number from 1 to "
            f"{MAX_DEVICES}."
        )
    if attributes.get("replica_count", "1") != "1":
        raise HloError(
            f"line {number}: replica_count over 1 (pmap) is not understood. Use shard_map."
        )


def _computations(
    lines: list[str], start: int
) -> tuple[str | None, dict[str, Computation], SourceTables]:
    """Return the name of the ENTRY computation, None without one, all computations, the tables."""
    computations: dict[str, Computation] = {}
    tables: dict[str, list[str]] = {}
    entry, header, table = None, None, None
    known: dict[str, Instruction] = {}
    instructions: list[Instruction] = []
    for number, line in enumerate(lines[start:], start + 1):
        if not line:
            table = None
        elif header is not None:
            if _END.fullmatch(line):
                computations[header[2]] = Computation(
                    header[2], tuple(instructions), (header[3] or "").strip()
                )
                header = None
            else:
                new = _instruction(line, number, known)
                made = [*elements(new.operands, number, known), new]
                instructions += made
                known.update((i.name, i) for i in made)
        elif line in TABLES:
            table = tables.setdefault(line, [])
        elif table is not None and is_table_row(line):
            table.append(line)
        else:
            header, instructions, known, table = _header(line, number), [], {}, None
            if header[2] in computations:
                raise HloError(f"line {number}: computation %{header[2]} is defined twice.")
            if header[1] and entry is not None:
                raise HloError(f"line {number}: a second ENTRY computation.")
            entry = header[2] if header[1] else entry
    if header is not None:
        raise HloError(
            f"line {len(lines)}: computation %{header[2]} does not end: text is cut off."
        )
    return entry, computations, read_tables(tables)


def _header(line: str, number: int) -> re.Match:
    """Match a computation's first line, `[ENTRY ]%NAME [(parameters) -> result ]{`."""
    match = _COMPUTATION.fullmatch(line)
    if match is None:
        raise HloError(f"line {number}: expected a computation, got {line[:80]!r}.")
    return match


def _instruction(line: str, number: int, known: dict[str, Instruction]) -> Instruction:
    head = _INSTRUCTION.match(line)
    if head is None:
        raise HloError(f"line {number}: expected '%name = shape opcode(...)', got {line[:80]!r}.")
    at = head.end()
    shape_end = skip_balanced(line, at, number) if line[at : at + 1] == "(" else line.find(" ", at)
    opcode = _OPCODE.match(line, shape_end)
    if shape_end < 0 or opcode is None:
        raise HloError(
            f"line {number}: expected a shape and an opcode, got {line[at : at + 80]!r}."
        )
    operands_end = skip_balanced(line, opcode.end() - 1, number)
    inside = line[opcode.end() : operands_end - 1]
    literal = opcode[1] in ("constant", "parameter")
    if opcode[1] == "parameter" and not re.fullmatch(r"[0-9]{1,9}", inside):
        raise HloError(f"line {number}: expected parameter(N), got {inside[:40]!r}.")
    rest = line[operands_end:].lstrip()
    if rest and not rest.startswith(","):
        raise HloError(f"line {number}: expected attributes after operands, got {rest[:60]!r}.")
    try:
        shape = parse_shape(line[at:shape_end])
    except HloError as error:
        raise HloError(f"line {number}: {error}") from None
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        shape=shape,
        operands=() if literal else parse_operands(inside, number, known),
        attributes=_attributes(rest[1:], number),
        is_root=bool(head[1]),
        line=number,
        parameter=int(inside) if opcode[1] == "parameter" else -1,
        literal=int(inside) if opcode[1] == "constant" and _INTEGER.fullmatch(inside) else None,
    )


def _attributes(text: str, number: int) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for piece in split_commas(text, number):
        if piece.strip():
            key, equals, value = piece.strip().partition("=")
            if not equals or not _KEY.fullmatch(key) or key in attributes:
                raise HloError(
                    f"line {number}: expected attributes key=value, each once, got {piece[:60]!r}."
                )
            attributes[key] = value
    return attributes
