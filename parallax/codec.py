"""The strict translation of frozen values to JSON and back, for every file this library writes.

A dataclass becomes an object of its fields, a tuple a list, and a class with `parse` its text. A
member of a tagged union has its name beside its fields. Nothing else is guessed or converted.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_LATER, _OMIT, _PAIRS = "later", "omit", "pairs"
_WHILE_EMPTY = {False: {}, True: {_LATER: True, _OMIT: True}}
# Member class -> the tag and its value; union -> its members by that value.
_TAGS: dict[type, tuple[str, str]] = {}
_UNIONS: dict[Any, Mapping[str, type]] = {}


def later(default: Any, *, omit: bool = False) -> Any:
    """Return a dataclass field that older files may lack.

    Args:
      default: the meaning of files without the field.
      omit: new files leave the field out too while it has its default.
    """
    return dataclasses.field(default=default, metadata={_LATER: True, _OMIT: omit})


def pairs(*, later: bool = False) -> Any:
    """Return a dataclass field of (name, value) pairs that files hold as an object; default ().

    Args:
      later: older files may lack it, and new ones leave it out while it is empty.
    """
    return dataclasses.field(default=(), metadata={_PAIRS: True} | _WHILE_EMPTY[later])


def tagged_union(union: Any, tag: str, members: Mapping[str, type]) -> None:
    """Register the classes that a value annotated as `union` may have, distinguished by a tag.

    Args:
      union: a protocol or base class.
      tag: the field that files hold beside the member's own fields.
      members: value of the tag -> class; a class belongs to one union.
    """
    _UNIONS[union] = members
    _TAGS.update({cls: (tag, name) for name, cls in members.items()})


def encode(value: Any) -> Any:
    """Return a value as plain JSON data: objects, lists, strings, numbers, booleans and null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "parse"):
            return str(value)
        data = dict([_TAGS[type(value)]] if type(value) in _TAGS else [])
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if field.metadata.get(_OMIT) and inner == field.default:
                continue
            data[field.name] = encode(dict(inner) if _PAIRS in field.metadata else inner)
        return data
    if isinstance(value, Mapping):
        return {key: encode(inner) for key, inner in value.items()}
    return [encode(inner) for inner in value] if isinstance(value, list | tuple) else value


def number(value: float, unit: str, tag: str) -> dict[str, Any]:
    """Return one quantity as plain data. JSON has no infinity: null stands for it and for NaN."""
    return {"value": value if math.isfinite(value) else None, "unit": unit, "tag": tag}


def decode[T](kind: type[T], data: Any, context: str, next_step: str = "") -> T:
    """Return the value that `encode` turned into `data`.

    Args:
      kind: a frozen dataclass.
      data: the contents of a JSON file.
      context: the file, or other source, that errors name.
      next_step: a sentence that errors end with: what to do.

    Raises:
      ValueError: missing or unknown fields, a type or choice that the field does not allow, a
        number that is not finite, or a check of the value itself; one line with the field's path.
    """
    try:
        return _converter().structure(data, kind)
    except Exception as error:  # the converter's groups, and whatever a value's own checks raise
        path, said = _first(error)
        line = ": ".join(part for part in (context, path, said) if part)
        raise ValueError(f"{line} {next_step}".rstrip()) from None


def read_json(path: str | Path, context: str, next_step: str) -> Any:
    """Return the contents of a JSON file. ValueError if it cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{context}: {error.strerror}. {next_step}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{context}: not JSON: {error}. {next_step}") from None


def check_version(data: Any, field: str, version: int, context: str, next_step: str) -> None:
    """Raise ValueError unless the data is an object with this version."""
    if not isinstance(data, dict) or field not in data:
        raise ValueError(f"{context}: missing fields {[field]}. {next_step}")
    if type(data[field]) is not int or data[field] != version:
        raise ValueError(
            f"{context}: {field} is {data[field]!r}, this Parallax reads {version}. {next_step}"
        )


@dataclass(frozen=True)
class FileFormat[T]:
    """The format of one kind of file.

    Attributes:
      kind: the class of the value in the file.
      name: the file's name in errors.
      version_field, version: the field that holds the version, and the version written now.
      next_step: a sentence for errors: what to do about a file that cannot be read.
      older: converts the data of an older version to this one; leaves other data unchanged.
    """

    kind: type[T]
    name: str
    version_field: str
    version: int
    next_step: str
    older: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data

    def encode(self, value: T) -> dict[str, Any]:
        """Return the value as plain data, with the version."""
        return {self.version_field: self.version, **encode(value)}

    def decode(self, data: Any, context: str = "") -> T:
        """Return the value of plain data. ValueError as in `decode`, or for another version."""
        context = context or self.name
        if not isinstance(data, dict):
            said = f"not a {self.name}: expected an object with fields, got {type(data).__name__}"
            raise ValueError(f"{context}: {said}. {self.next_step}")
        data = self.older(data)
        check_version(data, self.version_field, self.version, context, self.next_step)
        rest = {name: inner for name, inner in data.items() if name != self.version_field}
        return decode(self.kind, rest, context, self.next_step)

    def load(self, path: str | Path) -> T:
        """Read a file. ValueError if it does not exist, is not JSON or has another format."""
        context = f"{self.name} {path}"
        return self.decode(read_json(path, context, self.next_step), context)

    def save(self, value: T, path: str | Path, indent: int = 1) -> None:
        """Write a file."""
        text = json.dumps(self.encode(value), indent=indent) + "\n"
        Path(path).write_text(text, encoding="utf-8")


class _Step(str):
    """The key or index at which an exception was raised, attached to it as a note."""


def _first(error: BaseException) -> tuple[str, str]:
    """Return the path of the first error, and its message."""
    steps = [
        getattr(note, "name", note)
        for note in reversed(getattr(error, "__notes__", []))
        if isinstance(note, _Step) or hasattr(note, "name")
    ]
    said = str(error)
    if isinstance(error, ExceptionGroup):
        path, said = _first(error.exceptions[0])
        steps.append(path)
    return ".".join(filter(None, steps)), said


@functools.cache
def _converter() -> Any:
    # Imported on first use: it takes a tenth of a second, and `import parallax` decodes nothing.
    import cattrs
    from cattrs.gen import make_dict_structure_fn

    converter = cattrs.Converter()

    def at(step: Any, kind: Any, data: Any) -> Any:
        try:
            return converter.structure(data, kind)
        except Exception as error:
            error.add_note(_Step(step))
            raise

    def scalar(data: Any, kind: type) -> Any:
        if kind is float and type(data) is int:
            data = float(data)
        if type(data) is not kind or (kind is float and not math.isfinite(data)):
            finite = ", finite" if kind is float else ""
            raise ValueError(f"expected {kind.__name__}{finite}, got {data!r}.")
        return data

    def literal(data: Any, kind: Any) -> Any:
        choices = typing.get_args(kind)
        if not any(type(data) is type(choice) and data == choice for choice in choices):
            raise ValueError(f"expected one of {', '.join(map(str, choices))}; got {data!r}.")
        return data

    def of_tuple(data: Any, kind: Any) -> tuple[Any, ...]:
        kinds = typing.get_args(kind)
        if not isinstance(data, list):
            raise ValueError(f"expected a list, got {type(data).__name__}.")
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(data)
        if len(data) != len(kinds):
            raise ValueError(f"expected {len(kinds)} values, got {len(data)}.")
        return tuple(at(i, k, x) for i, (k, x) in enumerate(zip(kinds, data, strict=True)))

    def mapping(data: Any, kind: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise ValueError(f"expected an object, got {type(data).__name__}.")
        return {key: at(key, typing.get_args(kind)[1], x) for key, x in data.items()}

    def union(data: Any, kind: Any) -> Any:
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        if data is None and len(kinds) < len(typing.get_args(kind)):
            return None
        if all(k in _TAGS for k in kinds):
            return member(data, {_TAGS[k][1]: k for k in kinds})
        fits = [k for k in kinds if _holds(k, data)]
        return converter.structure(data, (fits or kinds)[0])

    def member(data: Any, members: Mapping[str, type]) -> Any:
        tag = _TAGS[next(iter(members.values()))][0]
        name = data.get(tag) if isinstance(data, dict) else None
        if not isinstance(name, str) or name not in members:
            raise ValueError(f"expected a {tag!r} of {', '.join(members)}; got {data!r}.")
        rest = {key: value for key, value in data.items() if key != tag}
        return converter.structure(rest, members[name])

    def of_dataclass(kind: Any) -> Callable[[Any, Any], Any]:
        if hasattr(kind, "parse"):
            return lambda data, _: kind.parse(scalar(data, str))
        structure = make_dict_structure_fn(kind, converter)
        fields = {f.name: _LATER in f.metadata for f in dataclasses.fields(kind) if f.init}

        def hook(data: Any, _: Any) -> Any:
            if not isinstance(data, dict):
                raise ValueError(f"expected an object with fields, got {type(data).__name__}.")
            missing = [name for name, is_later in fields.items() if not is_later | (name in data)]
            unknown = sorted(set(data) - set(fields))
            if missing or unknown:
                raise ValueError(
                    f"missing fields {missing}, unknown fields {unknown}. Expected exactly "
                    f"{list(fields)}."
                )
            return structure(data, kind)

        return hook

    for kind in (str, int, float, bool):
        converter.register_structure_hook(kind, scalar)
    # The converter takes the last registered hook that applies.
    converter.register_structure_hook_factory(dataclasses.is_dataclass, of_dataclass)
    for origins, hook in (
        ((Literal,), literal), ((tuple,), of_tuple), ((dict, Mapping), mapping),
        ((typing.Union, types.UnionType), union),
    ):  # fmt: skip
        fits = functools.partial(lambda kind, origins: typing.get_origin(kind) in origins,
                                 origins=origins)  # fmt: skip
        converter.register_structure_hook_func(fits, hook)
    converter.register_structure_hook_func(
        lambda kind: isinstance(kind, type) and kind in _UNIONS,
        lambda data, kind: member(data, _UNIONS[kind]),
    )
    return converter


def _holds(kind: Any, data: Any) -> bool:
    """Return whether JSON data can be a value of `kind`, so that a union can choose a member."""
    origin = typing.get_origin(kind) or kind
    if origin is Literal:
        return any(_holds(type(choice), data) for choice in typing.get_args(kind))
    if isinstance(data, dict):
        return origin in (dict, Mapping) or dataclasses.is_dataclass(origin)
    if isinstance(data, list):
        return origin is tuple
    return origin is type(data) or (origin is float and type(data) is int)
