"""A field of a request that describes itself: help, grammar, unit, choices, lower bound."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# How a value is written: text; a whole number; a number; a switch (--small, --nosmall); one of some
# choices; values by commas; whole numbers by commas; a flag that may be given several times.
Kind = Literal["text", "whole", "number", "switch", "choice", "list", "whole list", "repeated"]

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
      help: what it means, in one or a few sentences.
      kind: how it is written on a command line.
      unit: of a number, such as "tokens" or "s".
      choices: of kind "choice".
      at_least: lower bound of a whole number.
      flag: its name on a command line; "" is the field's own.
      missing: what to say where it has to be given and is not; "" where it may be left out.
      positional: it may be written without its flag.
    """

    help: str
    kind: Kind = "text"
    unit: str = ""
    choices: tuple[str, ...] = ()
    at_least: int | None = None
    flag: str = ""
    missing: str = ""
    positional: bool = False


def option(default: Any, help: str, kind: Kind = "text", **more: Any) -> Any:
    """A dataclass field with its default and its description; `more` is of `Option`."""
    described = Option(help, kind, **more)
    return dataclasses.field(default=default, metadata={"option": described})


@dataclass(frozen=True)
class Described:
    """A field with its description, wherever it is nested.

    Attributes:
      flag: its name on a command line.
      default: of the field.
      option: the description.
    """

    flag: str
    default: Any
    option: Option


def described(cls: type) -> Iterator[Described]:
    """The described fields of a request, those of requests nested in it included, in order."""
    for field in dataclasses.fields(cls):
        if "option" in field.metadata:
            found: Option = field.metadata["option"]
            yield Described(found.flag or field.name, field.default, found)
        elif nested := field.metadata.get("nested"):
            yield from described(nested)


def nested(cls: type) -> Any:
    """A dataclass field that holds another request, whose fields are flags as well."""
    return dataclasses.field(metadata={"nested": cls})


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """A request of values by flag; what is not among them keeps its default."""
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
    """Base of all requests."""

    def unused(self) -> Mapping[str, str]:
        """Fields that mean nothing beside the values of the others, each with the reason."""
        return {}

    def changed(self) -> frozenset[str]:
        """Names of fields that differ from their defaults."""
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return frozenset(f.name for f in fields if getattr(self, f.name) != f.default)

    def refuse_unused(self, given: frozenset[str] | None = None) -> None:
        """Refuses what was given and would be ignored.

        Args:
          given: names of fields; None takes those that differ from their defaults.

        Raises:
          ValueError: one of them means nothing beside the others; says why.
        """
        given = self.changed() if given is None else given
        found = [f"{name}: {why}" for name, why in self.unused().items() if name in given]
        if found:
            raise ValueError(f"{'; '.join(found)}. Leave it out.")


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a request's fields; all may be left out, as older versions did."""
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
