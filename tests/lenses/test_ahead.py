"""Programs compiled ahead: in order, in the caller's context, and no more than are taken."""

import contextlib
import contextvars

import jax
import jax.numpy as jnp
import pytest

from parallax.lenses.ahead import compiled_ahead

FACTOR = contextvars.ContextVar("factor", default=1.0)


def times(n):
    return jax.jit(lambda x: x * n * FACTOR.get()).lower(jnp.ones(2))


def test_programs_come_in_order_and_are_traced_in_the_callers_context():
    token = FACTOR.set(10.0)
    try:
        with contextlib.closing(compiled_ahead([lambda n=n: times(n) for n in range(5)])) as found:
            assert [float(program(jnp.ones(2))[0]) for program in found] == [0, 10, 20, 30, 40]
    finally:
        FACTOR.reset(token)


def test_an_error_is_raised_when_its_program_is_due():
    def wrong():
        raise ValueError("no such program")

    found = compiled_ahead([lambda: times(2), wrong, lambda: times(3)])
    assert float(next(found)(jnp.ones(2))[0]) == 2
    with pytest.raises(ValueError, match="no such program"):
        next(found)
    assert list(found) == []


def test_what_is_left_is_not_traced_once_closed():
    traced = []

    def trace(n):
        traced.append(n)
        return times(n)

    found = compiled_ahead([lambda n=n: trace(n) for n in range(200)])
    next(found)
    found.close()
    assert len(traced) < 200
    before = len(traced)
    assert list(found) == []
    assert len(traced) == before
