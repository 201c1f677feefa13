"""A field of a request that describes itself: help, grammar, unit, choices, lower bound."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

# How a value is written: text; a whole number (4k is 4096); a number; a switch (--small,
# --nosmall); one of several choices; comma-separated values; comma-separated whole numbers; a
# repeatable flag.
Kind = Literal["text", "whole", "number", "switch", "choice", "list", "whole list", "repeated"]

_UNITS = {"": 1, "k": 1024, "M": 1024**2}

_JSON_TYPES: dict[Kind, Any] = {
    "text": {"type": "string"},
    "whole": {"type": "integer"},
    "number": {"type": "number"},
    "switch": {"type": "boolean"},
    "choice": {"type": "string"},
    "list": {"type": "array", "items": {"type": "string"}},
    "whole list": {"type": "array", "items": {"type": "integer"}},
    "repeated": {"type": "array", "items": {"type": "string"}},
}


@dataclass(frozen=True)
class Option:
    """The description of one field of a request.

    Attributes:
      help: the field's meaning, in one or a few sentences.
      kind: how a value is written on the command line.
      unit: unit of a number, such as "tokens" or "s".
      choices: the values allowed, for kind "choice".
      replaced: values that earlier versions had, for kind "choice", and what to use instead.
      at_least: lower bound of a whole number.
      flag: name of the flag; "" is the field's own name.
      missing: the error's advice where a required value is missing; "" where it is optional.
      positional: whether the value may be given without its flag.
    """

    help: str
    kind: Kind = "text"
    unit: str = ""
    choices: tuple[str, ...] = ()
    replaced: Mapping[str, str] = MappingProxyType({})
    at_least: int | None = None
    flag: str = ""
    missing: str = ""
    positional: bool = False


def option(default: Any, help: str, kind: Kind = "text", **more: Any) -> Any:
    """Make a dataclass field with its default and its description; `more` are Option fields."""
    described = Option(help, kind, **more)
    return dataclasses.field(default=default, metadata={"option": described})


@dataclass(frozen=True)
class Described:
    """A field of a request, or of one nested in it, with its description.

    Attributes:
      flag: name of the flag.
      default: default of the field.
      option: the description.
    """

    flag: str
    default: Any
    option: Option


def described(cls: type) -> Iterator[Described]:
    """Yield the described fields of a request in order, with those of nested requests."""
    for field in dataclasses.fields(cls):
        if "option" in field.metadata:
            found: Option = field.metadata["option"]
            yield Described(found.flag or field.name, field.default, found)
        elif nested := field.metadata.get("nested"):
            yield from described(nested)


def parse_whole(text: str) -> int:
    """Parse a whole number, which may end in k (1024) or M (1024 k), as 4k is 4096.

    Raises:
      ValueError: another grammar.
    """
    match = re.fullmatch(r"\s*([+-]?[0-9]+(?:_[0-9]+)*)([kM]?)\s*", text)
    if match is None:
        raise ValueError(f"expected a whole number such as 16, 4k or 1M (k = 1024), got {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def nested(cls: type) -> Any:
    """Make a dataclass field that holds another request, whose fields are flags as well."""
    return dataclasses.field(default_factory=cls, metadata={"nested": cls})


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """Build a request from values by flag; fields without a value keep their defaults."""
    made = {}
    for field in dataclasses.fields(cls):
        if "option" in field.metadata:
            name = field.metadata["option"].flag or field.name
            if name in values:
                made[field.name] = values[name]
        elif inner := field.metadata.get("nested"):
            made[field.name] = build(inner, values)
    return cls(**made)


class Request:
    """The base class of all requests."""

    def unused(self) -> Mapping[str, str]:
        """Return the fields that the values of the others make irrelevant, each with the reason."""
        return {}

    def changed(self) -> frozenset[str]:
        """Return the names of the fields that differ from their defaults."""
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return frozenset(f.name for f in fields if getattr(self, f.name) != f.default)

    def refuse_unused(self, given: frozenset[str] | None = None) -> None:
        """Refuse values that were given and would be ignored.

        Args:
          given: names of the fields given; None takes those that differ from their defaults.

        Raises:
          ValueError: a given field would be ignored; says why.
        """
        given = self.changed() if given is None else given
        ignored = [f"{name}: {why}" for name, why in self.unused().items() if name in given]
        if ignored:
            raise ValueError(f"{'; '.join(ignored)}. Leave it out.")


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a request; every field is optional, as older files lack some."""
    properties = {}
    for one in described(cls):
        schema = dict(_JSON_TYPES[one.option.kind])
        choices: tuple[Any, ...] = one.option.choices
        if one.option.at_least is not None:
            schema["minimum"] = one.option.at_least
        if one.default is None:
            schema["type"] = [schema["type"], "null"]
            choices = (*choices, None) if choices else ()
        if choices:
            schema["enum"] = list(choices)
        properties[one.flag] = schema
    return {"type": "object", "properties": properties, "additionalProperties": False}
