"""The pickling of a task for a child process: functions and classes of scripts, by value."""

import abc
import dataclasses
import inspect
import io
from typing import Any

import cloudpickle


def dumps(task: Any) -> bytes:
    """Pickle anything that cloudpickle can, and classes whose metaclass reads their fields."""
    file = io.BytesIO()
    _Pickler(file).dump(task)
    return file.getvalue()


def _own_init(self, *args, **kwargs):
    """Hold the place of a class's own `__init__` until it is set."""


class _Pickler(cloudpickle.Pickler):
    """cloudpickle makes a class empty and fills it afterwards.

    A metaclass that makes a dataclass of it, as Equinox's does, would see no fields, so these and
    their defaults are there from the start.
    """

    def reducer_override(self, obj: Any) -> Any:
        reduced: Any = super().reducer_override(obj)
        is_class = isinstance(obj, type) and type(obj) not in (type, abc.ABCMeta)
        if is_class and hasattr(obj, "__dataclass_fields__") and isinstance(reduced, tuple):
            constructor, (metaclass, name, bases, namespace, *more), *state = reduced
            namespace = _fields(obj) | namespace
            return (constructor, (metaclass, name, bases, namespace, *more), *state)
        return reduced


def _fields(cls: type) -> dict[str, Any]:
    """Return the namespace from which a metaclass makes a dataclass with the fields of `cls`."""
    namespace: dict[str, Any] = {"__annotations__": inspect.get_annotations(cls)}
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        if field.name in namespace["__annotations__"]:
            kept = {
                key: getattr(field, key)
                for key in ("default", "default_factory")
                if getattr(field, key) is not dataclasses.MISSING
            }
            namespace[field.name] = dataclasses.field(
                **kept, init=field.init, repr=field.repr, compare=field.compare,
                metadata=dict(field.metadata), kw_only=bool(field.kw_only),
            )  # fmt: skip
    params = getattr(cls, "__dataclass_params__", None)
    if "__init__" in cls.__dict__ and params is not None and not params.init:
        namespace["__init__"] = _own_init
    return namespace
