"""The operands of an instruction in every form that HLO text has.

`%a`, `a`, `f32[8]{0} %a`, and `%a#0` for an element of the tuple %a, which dumps of newer versions
write in place of a get-tuple-element of its own.
"""

import re
from collections.abc import Mapping

from parallax.hlo.module import Instruction
from parallax.hlo.shapes import HloError, parse_shape

_NAME = r"%?[^\s,(){}\[\]%]+"
_PLAIN = re.compile(rf"(?:{_NAME}(?:,\s*{_NAME})*)?")
_OPERAND = re.compile(rf"(?:(\S.*?)\s+)?({_NAME})")
_NAMES = re.compile(r"[^\s,%]+")
# A whole quoted text, which may end in an escaped backslash, or one delimiter outside of quotes.
_DELIMITER = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[(){}\[\],"]')
_OPENING, _CLOSING = "({[", ")}]"


def split_commas(text: str, number: int) -> list[str]:
    """Split a text at the commas outside brackets and quotes; `number` is its line, for errors."""
    pieces, depth, start = [], 0, 0
    for match in _DELIMITER.finditer(text):
        char = match[0]
        if char == '"':
            depth = -1  # a quote that does not close
            break
        if char[0] == '"':
            continue
        if char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
        elif depth == 0:
            pieces.append(text[start : match.start()])
            start = match.end()
    if depth:
        raise HloError(f"line {number}: attributes do not close: {text[:80]!r}.")
    return [*pieces, text[start:]]


def skip_balanced(line: str, start: int, number: int) -> int:
    """Return the position after the bracket that closes the one at `start`, skipping quotes."""
    depth = 0
    for match in _DELIMITER.finditer(line, start):
        char = match[0]
        if char == '"':
            break  # a quote that does not close
        if char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
            if depth == 0:
                return match.end()
    raise HloError(
        f"line {number}: a bracket or quote does not close: {line[start : start + 60]!r}."
    )


def parse_operands(text: str, number: int, known: Mapping[str, Instruction]) -> tuple[str, ...]:
    """Parse the text between an instruction's parentheses into names.

    Args:
      text: `%a, %b` or any other form.
      number: the line, for errors.
      known: the instructions before it by name; a shape before an operand must be the operand's.

    Raises:
      HloError: another form, or a shape that is not the operand's.
    """
    if _PLAIN.fullmatch(text):
        return tuple(_NAMES.findall(text))
    names = []
    for piece in split_commas(text, number):
        match = _OPERAND.fullmatch(piece.strip())
        if match is None:
            raise HloError(f"line {number}: expected operands '%a, %b', got {text[:80]!r}.")
        name = match[2].removeprefix("%")
        if match[1] is not None:
            try:
                shape = parse_shape(match[1])
            except HloError:
                raise HloError(
                    f"line {number}: expected operands '%a, %b', got {text[:80]!r}."
                ) from None
            if name in known and known[name].shape != shape:
                raise HloError(f"line {number}: operand %{name} is not of shape {match[1][:60]}.")
        names.append(name)
    return tuple(names)


def elements(
    names: tuple[str, ...], number: int, known: Mapping[str, Instruction]
) -> list[Instruction]:
    """Make the get-tuple-elements that names such as `a#0` stand for, where not known already.

    Raises:
      HloError: the tuple is not defined before, or has no such element.
    """
    made: dict[str, Instruction] = {}
    for name in names:
        base, *places = name.split("#")
        for place in places if name not in known else ():
            whole, base = known.get(base) or made.get(base), f"{base}#{place}"
            within = re.fullmatch(r"[0-9]{1,8}", place) and whole is not None
            if not within or int(place) >= len(whole.shape.elements):  # pyright: ignore[reportOptionalMemberAccess]
                raise HloError(
                    f"line {number}: %{name[:80]} is not an element of a tuple before it."
                )
            if base not in known:
                made[base] = Instruction(
                    name=base, opcode="get-tuple-element",
                    shape=whole.shape.elements[int(place)],  # pyright: ignore[reportOptionalMemberAccess]
                    operands=(whole.name,), attributes={"index": place}, line=number,  # pyright: ignore[reportOptionalMemberAccess]
                )  # fmt: skip
    return list(made.values())
