"""Which cases of a test `pytest` runs: one of each kind; the others are for `-m exhaustive`."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def often(cases: Iterable[str], *names: str):
    """A parameter `name` for each case, all of them exhaustive but `names`."""
    cases = tuple(cases)
    _check(cases, names)
    marked = [n if n in names else pytest.param(n, marks=pytest.mark.exhaustive) for n in cases]
    return pytest.mark.parametrize("name", marked)


def in_full(cases: Iterable[str], *names: str):
    """A parameter `name` for each case, all of them for `-m full` but `names`."""
    cases = tuple(cases)
    _check(cases, names)
    marked = [n if n in names else pytest.param(n, marks=pytest.mark.full) for n in cases]
    return pytest.mark.parametrize("name", marked)


def in_turns(cases: Iterable[Any], always: int, mark: pytest.MarkDecorator = pytest.mark.full):
    """The cases of a long list: one of every `always` by default, the others with `mark`."""
    return [case if n % always == 0 else pytest.param(case, marks=mark)
            for n, case in enumerate(cases)]  # fmt: skip


def together(cases: Mapping[str, Any], *names: str):
    """A parameter `chosen` of two lists: the cases with `names`, and, exhaustive, all others.

    For tests that check many cases at once, because these share what they are compared with.
    """
    _check(cases, names)
    few = [cases[n] for n in names]
    others = [case for n, case in cases.items() if n not in names]
    exhaustive = pytest.param(others, marks=pytest.mark.exhaustive)
    return pytest.mark.parametrize("chosen", [few, exhaustive], ids=["few", "others"])


def _check(cases: Iterable[str], names: tuple[str, ...]) -> None:
    """A name that is no case would leave out what it stands for, and nobody would see it."""
    unknown = set(names).difference(cases)
    assert not unknown, f"no cases: {sorted(unknown)}"
    assert names
