"""The typed fields of a JSON file, with errors that name the file and the field."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_MOST = 2**31 - 1


class Fields:
    """The fields of one JSON object.

    Args:
      path: the file, for error messages.
      values: name -> value.
      refused: the list that `refuse` adds to; None is one of its own.

    `refuse` collects unsupported settings and `finish` raises, so that one error names all of them.
    """

    def __init__(self, path: Path, values: dict[str, Any], refused: list[str] | None = None):
        self.path, self.values = path, values
        self._refused: list[str] = [] if refused is None else refused

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a positive integer; `default`, if given, for a null or missing field."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
            raise ValueError(f"{self.path}: {name} must be a positive integer, got {value!r}.")
        return value

    def number(self, name: str, default: float | None = None, *, or_zero: bool = False) -> float:
        """Return a positive number, or zero if allowed; `default` as in `integer`."""
        value = self.values.get(name)
        value = default if value is None else value
        least = 0 if or_zero else sys.float_info.min
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or not is_number or not least <= value <= sys.float_info.max:
            raise ValueError(f"{self.path}: {name} must be a positive number, got {value!r}.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false; `default` as in `integer`."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ValueError(f"{self.path}: {name} must be true or false, got {value!r}.")
        return value

    def over(self, defaults: Mapping[str, Any]) -> "Fields":
        """Return the fields with defaults for missing ones; both record refusals in one list."""
        return Fields(self.path, {**defaults, **self.values}, self._refused)

    def inner(self, name: str) -> "Fields":
        """Return the fields of a field that holds an object; none for a null or missing field.

        Both record refusals in one list.
        """
        value = self.values.get(name)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise ValueError(f"{self.path}: {name} must be an object, got {value!r}.")
        return Fields(self.path, value, self._refused)

    def whole_numbers(self, name: str) -> list[int] | None:
        """Return a list of integers of at least zero; None for a null or missing field."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or any(type(x) is not int or x < 0 for x in value):
            raise ValueError(f"{self.path}: {name} must be a list of integers, got {value!r}.")
        return value

    def refuse(self, name: str, is_ours: Callable[[Any], bool], ours: str) -> None:
        """Record a field whose setting this model does not support.

        Args:
          name: the field; a missing one is accepted.
          is_ours: whether the model supports a value.
          ours: the supported setting, in words.
        """
        if name in self.values and not is_ours(self.values[name]):
            self.refused(name, ours)

    def refused(self, name: str, ours: str) -> None:
        """Record a field whose setting is known not to be supported; as in `refuse`."""
        self._refused.append(f"{name} is {self.values.get(name)!r} (Parallax: {ours})")

    def finish(self) -> None:
        """Raise a ValueError that names all refused fields, if there are any."""
        if self._refused:
            raise ValueError(
                f"{self.path}: {'; '.join(self._refused)}. This model would compute something "
                "else, so it is not loaded. A copy of the file without these settings describes "
                "the nearest model that is."
            )


def read_fields(path: Path, *, hint: str) -> Fields:
    """Return the fields of the object in a JSON file.

    Args:
      path: the file.
      hint: what to do if it does not exist, for the error.

    Raises:
      ValueError: a missing file, or one without a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}. {hint}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold an object, got {type(values).__name__}.")
    return Fields(path, values)
