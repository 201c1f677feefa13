"""How often each side of a branch is taken, where a caller knows it.

Which side runs depends on data and is not in the program. Callers that know it, such as those who
wrote the table of a pipeline's ticks, name the sides by the named scopes around their operations.
"""

import re
from fractions import Fraction
from typing import Any, NamedTuple

from parallax.bounds import Taken, Trips
from parallax.hlo.module import Instruction, Module

# A side's own scope is the part of an operation's name after the last side around it.
_SIDE = re.compile(r".*/branch_\d+_fun/")


class Side(NamedTuple):
    """One side of a branch: its computation, and how often it is taken."""

    computation: str
    taken: Taken


def loop_trips(trips: Trips | None) -> dict[str, float]:
    """Return the trip counts of loops."""
    return {s: n for s, n in (trips or {}).items() if not isinstance(n, Taken)}


def sides(module: Module, i: Instruction, trips: Trips | None) -> tuple[Side, ...] | None:
    """Return the sides of a conditional in order; None if it is not known how often they run.

    One side may have no scope of its own: it is taken when no other is.
    """
    names = [name for group in i.calls().values() for name in group]
    known = [(s, n) for s, n in (trips or {}).items() if isinstance(n, Taken)]
    found = [_taken((x.op_name for x in module.computation(n).instructions), known) for n in names]
    rest = _rest(found)
    if rest is None:
        return None
    return tuple(Side(n, rest if f is None else f) for n, f in zip(names, found, strict=True))


def sides_of_jaxpr(jaxprs: Any, trips: Trips | None) -> tuple[Taken, ...] | None:
    """Return how often each branch of a `cond` in a jaxpr runs; None if it is not known."""
    known = [(s, n) for s, n in (trips or {}).items() if isinstance(n, Taken)]
    found = []
    for jaxpr in jaxprs:
        equations = getattr(jaxpr, "jaxpr", jaxpr).eqns
        found.append(_taken((str(e.source_info.name_stack) for e in equations), known))
    rest = _rest(found)
    return None if rest is None else tuple(rest if f is None else f for f in found)


def _taken(names: Any, known: list[tuple[str, Taken]]) -> Taken | None:
    """Return what is known of the scope that operations with these names begin in."""
    if not known:
        return None
    starts = {_SIDE.sub("", name).partition("/")[0] for name in names}
    return next((taken for scope, taken in known if scope in starts), None)


def _rest(found: list[Taken | None]) -> Taken | None:
    """Return how often the side without a scope is taken; None unless the others are known."""
    named = [f for f in found if f is not None]
    if not named or len(found) - len(named) > 1:
        return None
    of = named[0].of
    taken = frozenset[int]().union(*(f.iterations for f in named))
    executions = 1 - sum((f.executions for f in named), Fraction(0))
    return Taken(executions, frozenset(range(of)) - taken, of)
