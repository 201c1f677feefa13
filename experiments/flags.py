"""The flags of a command: defined by the fields of its `Flags`, read from a command line.

A command has the flags that it lists and no others. Of Abseil's own flags, which every program with
Abseil has, only --flagfile=FILE is one: it reads flags from a file.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from absl import flags

from parallax.requests.option import Described, Option, Request, build, described, parse_whole


@dataclass(frozen=True, kw_only=True)
class Command(Request):
    """The base of every command's `Flags`; `given` are the names of the flags that were set.

    Attributes:
      saves_on_sigterm: whether the command saves and stops, on all its processes, after SIGTERM.
    """

    saves_on_sigterm: ClassVar[bool] = False

    given: frozenset[str] = frozenset()

    def check(self) -> None:
        """Raise ValueError naming the flags that were given and would be ignored."""
        for one in (self, *(getattr(self, f.name) for f in fields(self))):
            if isinstance(one, Request):
                one.refuse_unused(self.given)


class UnknownFlagError(ValueError):
    """The error for a flag that the command does not have; `flag` is its name."""

    def __init__(self, flag: str, known: list[str]):
        near = difflib.get_close_matches(flag, known, 1)
        hint = f"; did you mean --{near[0]}?" if near else "."
        super().__init__(f"Unknown command line flag {flag!r}{hint}")
        self.flag = flag


def read_flags(cls: type, argv: list[str]) -> Any:
    """Read the `Flags` of a command from a command line.

    Args:
      cls: the command's `Flags`.
      argv: the program's name and arguments.

    Raises:
      UnknownFlagError: a flag that the command does not have.
      ValueError, absl.flags.Error: an invalid value, an argument that is not a flag, a required
        flag that is missing, or a flag that would be ignored.
    """
    listed = list(described(cls))
    table = flags.FlagValues()
    for one in listed:
        _define(table, one)
    try:
        argv = table.read_flags_from_files(argv, force_gnu=False)
        _refuse_undefok(argv, [one.flag for one in listed])
        rest = table(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UnknownFlagError(error.flagname, [one.flag for one in listed]) from None
    values = dict(_values(table, listed))
    for one in listed:
        if one.option.positional and len(rest) == 1 and one.flag not in values:
            values[one.flag] = rest.pop()
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}. Flags are written --name=value.")
    _check_missing(listed, values)
    made = replace(build(cls, values), given=frozenset(values))
    made.check()
    return made


def _check_missing(listed: list[Described], values: Mapping[str, Any]) -> None:
    for one in listed:
        if one.option.missing and not values.get(one.flag):
            raise ValueError(f"--{one.flag} is missing. {one.option.missing}")


def _refuse_undefok(argv: list[str], known: list[str]) -> None:
    """Refuse Abseil's --undefok=NAME, which makes it ignore a flag."""
    for argument in argv[1:]:
        if argument == "--":
            return
        if argument.startswith("-") and argument.lstrip("-").partition("=")[0] == "undefok":
            raise UnknownFlagError("undefok", known)


def _define(table: flags.FlagValues, one: Described) -> None:
    """Add a flag to a table, unset; the defaults are those of the fields."""
    option = one.option
    more: Any = {"flag_values": table}
    once: Any = {"flag_values": table, "allow_overwrite": False}
    if option.kind == "whole":
        parser, serializer = _Whole(option.at_least), flags.ArgumentSerializer()
        flags.DEFINE(parser, one.flag, None, "", serializer=serializer, **once)
    elif option.kind == "choice":
        parser, serializer = _Choice(option), flags.ArgumentSerializer()
        flags.DEFINE(parser, one.flag, None, "", serializer=serializer, **once)
    elif option.kind == "repeated":
        flags.DEFINE_multi_string(one.flag, None, "", **more)
    else:
        simple: Mapping[str, Any] = {
            "text": flags.DEFINE_string, "number": flags.DEFINE_float,
            "switch": flags.DEFINE_bool, "list": flags.DEFINE_list,
            "whole list": flags.DEFINE_list,
        }  # fmt: skip
        simple[option.kind](one.flag, None, "", **once)


class _Whole(flags.IntegerParser):
    """The parser of a whole number, which may end in k or M."""

    def convert(self, argument: int | str) -> int:
        return parse_whole(argument) if isinstance(argument, str) else super().convert(argument)


class _Choice(flags.EnumParser):
    """The parser of a flag with choices; it says what replaces a value of earlier versions."""

    def __init__(self, option: Option):
        super().__init__(option.choices)
        self._replaced = option.replaced

    def parse(self, argument: str) -> str:
        if argument in self._replaced:
            raise ValueError(self._replaced[argument])
        return super().parse(argument)


def _values(table: flags.FlagValues, listed: list[Described]) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each flag that was given."""
    for one in listed:
        flag = table[one.flag]
        if not flag.present:
            continue
        value: Any = tuple(flag.value) if isinstance(flag.value, list) else flag.value
        if one.option.kind == "whole list":
            value = tuple(_whole(one.flag, text) for text in value)
        yield one.flag, value


def _whole(flag: str, text: str) -> int:
    try:
        return parse_whole(text)
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}. Separate several by commas.") from None


def meaning(option: Option) -> str:
    """Return what a flag means, its choices last."""
    return option.help + (f" One of {', '.join(option.choices)}." if option.choices else "")


def shown_default(default: Any) -> str:
    """Return the default as it would be typed; "" for a flag that is unset."""
    return "" if default is None or default is False or default == () else str(default)
