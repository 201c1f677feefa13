"""The parser of HLO text into computations and instructions."""

import re

from parallax.hlo.limits import MAX_DEVICES, MAX_LINE, MAX_TEXT, short
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.shapes import HloError, parse_shape
from parallax.hlo.validate import check_module

__all__ = ["Computation", "HloError", "Instruction", "Module", "parse_module"]

_COMPUTATION = re.compile(r"(ENTRY )?%([^\s(]+) (?=\()")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = ")
_OPCODE = re.compile(r"([a-z][a-z0-9\-]*)\(")
_OPERANDS = re.compile(r"(?:(?:, )?(?:/\*index=\d+\*/)?%[^\s,(){}]+)*")
_OPERAND = re.compile(r"%([^\s,(){}]+)")
_KEY = re.compile(r"[A-Za-z0-9_\-]+")
_DELIMITER = re.compile(r'[(){}\[\],"]')
_OPENING, _CLOSING = "({[", ")}]"
# Tables between the module's header and its computations, which name source lines.
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


def parse_module(text: str) -> Module:
    """Parse `compiled.as_text()`.

    Raises:
      HloError: the text has anything that is not understood; names the line.
    """
    if len(text) > MAX_TEXT:
        raise HloError(f"text of {len(text)} characters: expected {MAX_TEXT} at most.")
    lines = text.split("\n")
    if len(longest := max(lines, key=len)) > MAX_LINE:
        raise HloError(
            f"line {lines.index(longest) + 1}: {len(longest)} characters, expected {MAX_LINE} at "
            "most."
        )
    if not lines[0].startswith("HloModule "):
        raise HloError(f"line 1: expected 'HloModule NAME, ...', got {lines[0][:60]!r}.")
    name, _, rest = lines[0].removeprefix("HloModule ").partition(",")
    attributes = _attributes(rest, 1)
    _check_devices(attributes)
    entry, computations = _computations(lines)
    if entry is None:
        raise HloError(f"module {name}: no ENTRY computation: text is cut off.")
    module = Module(name, attributes, computations, entry)
    check_module(module)
    return module


def _check_devices(attributes: dict[str, str]) -> None:
    partitions = attributes.get("num_partitions", "1")
    if not (re.fullmatch(r"[0-9]{1,9}", partitions) and 1 <= int(partitions) <= MAX_DEVICES):
        raise HloError(
            f"line 1: num_partitions={short(partitions)}: expected a number from 1 to "
            f"{MAX_DEVICES}."
        )
    if attributes.get("replica_count", "1") != "1":
        raise HloError("line 1: replica_count over 1 (pmap) is not understood. Use shard_map.")


def _computations(lines: list[str]) -> tuple[str | None, dict[str, Computation]]:
    """Return the name of the ENTRY computation, None without one, and all computations."""
    computations: dict[str, Computation] = {}
    entry, header, instructions, in_table = None, None, [], False
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            in_table = False
        elif header is not None:
            if line == "}":
                computations[header[2]] = Computation(
                    header[2], tuple(instructions), header.string[header.end() : -2]
                )
                header = None
            else:
                instructions.append(_instruction(line, number))
        elif line in _TABLES:
            in_table = True
        elif not in_table:
            header, instructions = _header(line, number), []
            if header[2] in computations:
                raise HloError(f"line {number}: computation %{header[2]} is defined twice.")
            if header[1] and entry is not None:
                raise HloError(f"line {number}: a second ENTRY computation.")
            entry = header[2] if header[1] else entry
    if header is not None:
        raise HloError(
            f"line {len(lines)}: computation %{header[2]} does not end: text is cut off."
        )
    return entry, computations


def _header(line: str, number: int) -> re.Match:
    """Match a computation's first line, `[ENTRY ]%NAME (parameters) -> result {`."""
    match = _COMPUTATION.match(line)
    if match is None or " -> " not in line or not line.endswith(" {"):
        raise HloError(f"line {number}: expected a computation, got {line[:80]!r}.")
    return match


def _instruction(line: str, number: int) -> Instruction:
    head = _INSTRUCTION.match(line)
    if head is None:
        raise HloError(f"line {number}: expected '%name = shape opcode(...)', got {line[:80]!r}.")
    at = head.end()
    shape_end = _skip_balanced(line, at, number) if line[at : at + 1] == "(" else line.find(" ", at)
    opcode = _OPCODE.match(line, shape_end + 1)
    if shape_end < 0 or opcode is None:
        raise HloError(
            f"line {number}: expected a shape and an opcode, got {line[at : at + 80]!r}."
        )
    operands_end = _skip_balanced(line, opcode.end() - 1, number)
    inside = line[opcode.end() : operands_end - 1]
    literal = opcode[1] in ("constant", "parameter")
    if opcode[1] == "parameter" and not re.fullmatch(r"[0-9]{1,9}", inside):
        raise HloError(f"line {number}: expected parameter(N), got {inside[:40]!r}.")
    if not literal and not _OPERANDS.fullmatch(inside):
        raise HloError(f"line {number}: expected operands '%a, %b', got {inside[:80]!r}.")
    rest = line[operands_end:]
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
        operands=() if literal else tuple(_OPERAND.findall(inside)),
        attributes=_attributes(rest[1:], number),
        is_root=bool(head[1]),
        line=number,
        parameter=int(inside) if opcode[1] == "parameter" else -1,
    )


def _skip_balanced(line: str, start: int, number: int) -> int:
    """Return the position after the bracket that closes the one at `start`, skipping quotes."""
    depth, quoted = 0, False
    for match in _DELIMITER.finditer(line, start):
        char = match[0]
        if char == '"':
            if not (quoted and line[match.start() - 1] == "\\"):
                quoted = not quoted
        elif not quoted and char in _OPENING:
            depth += 1
        elif not quoted and char in _CLOSING:
            depth -= 1
            if depth == 0:
                return match.end()
    raise HloError(
        f"line {number}: a bracket or quote does not close: {line[start : start + 60]!r}."
    )


def _attributes(text: str, number: int) -> dict[str, str]:
    attributes, depth, quoted, start = {}, 0, False, 0
    pieces = []
    for match in _DELIMITER.finditer(text):
        char = match[0]
        if char == '"':
            if not (quoted and text[match.start() - 1] == "\\"):
                quoted = not quoted
        elif quoted:
            continue
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
        elif depth == 0:
            pieces.append(text[start : match.start()])
            start = match.end()
    if depth or quoted:
        raise HloError(f"line {number}: attributes do not close: {text[:80]!r}.")
    pieces.append(text[start:])
    for piece in pieces:
        if piece.strip():
            key, equals, value = piece.strip().partition("=")
            if not equals or not _KEY.fullmatch(key) or key in attributes:
                raise HloError(
                    f"line {number}: expected attributes key=value, each once, got {piece[:60]!r}."
                )
            attributes[key] = value
    return attributes
