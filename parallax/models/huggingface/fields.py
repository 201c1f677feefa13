"""Fields of one JSON file, taken with their types; what is wrong is said with file and field."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MOST = 2**31 - 1


class Fields:
    """Fields of one JSON object.

    Args:
      path: of the file, for messages.
      values: name -> value.

    Settings that would compute something else are collected by `refuse` and raised by `finish`, so
    that one error names all of them.
    """

    def __init__(self, path: Path, values: dict[str, Any]):
        self.path, self.values = path, values
        self._refused: list[str] = []

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; `default`, if there is one, where the field is null or not there."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
            raise ValueError(f"{self.path}: {name} must be a positive integer, got {value!r}.")
        return value

    def number(self, name: str, default: float | None = None, *, or_zero: bool = False) -> float:
        """A positive number, or zero where that is allowed; `default` as of `integer`."""
        value = self.values.get(name)
        value = default if value is None else value
        least = 0 if or_zero else sys.float_info.min
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or not is_number or not least <= value <= sys.float_info.max:
            raise ValueError(f"{self.path}: {name} must be a positive number, got {value!r}.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; `default` as of `integer`."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ValueError(f"{self.path}: {name} must be true or false, got {value!r}.")
        return value

    def inner(self, name: str) -> "Fields":
        """Of a field that holds an object; of none where it is null or not there."""
        value = self.values.get(name)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise ValueError(f"{self.path}: {name} must be an object, got {value!r}.")
        return Fields(self.path, value)

    def refuse(self, name: str, is_ours: Callable[[Any], bool], ours: str) -> None:
        """Notes a field that is set to what this model does not do.

        Args:
          name: of the field; one that is not there is fine.
          is_ours: of its value.
          ours: what this model has instead, in words.
        """
        if name in self.values and not is_ours(self.values[name]):
            self._refused.append(f"{name} is {self.values[name]!r} (here: {ours})")

    def finish(self) -> None:
        """Raises ValueError that names all that was refused."""
        if self._refused:
            raise ValueError(
                f"{self.path}: {'; '.join(self._refused)}. This model would compute something "
                "else, so it is not loaded."
            )


def read_fields(path: Path, *, hint: str) -> Fields:
    """The object in a JSON file.

    Args:
      path: of the file.
      hint: what to do where it is not there.

    Raises:
      ValueError: no file, or no JSON object in it.
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
