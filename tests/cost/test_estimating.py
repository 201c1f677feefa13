"""Cost estimates of whole programs by hand: round rates, so that times add up on paper."""

import dataclasses
import itertools
from fractions import Fraction

import pytest

from parallax.cost import estimate_cost, rates_of
from parallax.cost.rates import LinkRates
from parallax.hlo.branches import Taken
from parallax.hlo.collectives import Collective
from parallax.hlo.execution_trace import (
    Call,
    Choice,
    ExecutionTrace,
    Kernel,
    Loop,
    Send,
    Start,
    Wait,
)
from parallax.meshes.cluster import cluster

WHERE = cluster("h100_2x8")
LINK = LinkRates(start_s=0.0, bytes_per_s=1.0, half_bytes=1.0)
# 1 byte a second through memory, 2 through L2, 1 over a wire; a launch takes nothing.
RATES = dataclasses.replace(
    rates_of("h100"), memory_bytes_per_s=1.0, l2_bytes_per_s=2.0, launch_s=0.0, loop_s=0.5,
    links=dict.fromkeys(rates_of("h100").links, LINK),
)  # fmt: skip
_NEW = itertools.count()


def run(*steps, rates=RATES, **others):
    cost = estimate_cost(ExecutionTrace("main", {"main": steps, **others}, 16), WHERE, rates)
    assert sum(cost.terms.values()) == pytest.approx(cost.seconds)
    return cost


def busy(seconds, name="k", of=None):
    """A kernel of so many seconds, over an array of its own if `of` names none."""
    return Kernel(name, ((of or f"array {next(_NEW)}", float(seconds)),), 0.0)


def send(seconds):
    pairs = ((0, 1), (1, 0))
    made = Collective("collective-permute", ("x",), 16, seconds, seconds, 1, "f16", "", pairs=pairs)
    return Send("s", made)


def test_one_after_the_other():
    cost = run(busy(3), send(2), busy(4))
    assert (cost.seconds, cost.exposed_s, cost.hidden_s) == (9, 2, 0)
    assert cost.terms == {"memory": 7, "launches": 0, "exposed communication": 2}
    assert (cost.memory_bytes, cost.link_bytes, cost.network_s) == (7, 2, 0)


def test_a_send_behind_a_kernel_is_hidden():
    cost = run(Start("a", send(3)), busy(5), Wait("a"))
    assert (cost.seconds, cost.exposed_s, cost.hidden_s) == (5, 0, 3)


def test_a_longer_send_is_partly_hidden():
    cost = run(Start("a", send(7)), busy(5), Wait("a"), busy(1))
    assert (cost.seconds, cost.exposed_s, cost.hidden_s) == (8, 2, 5)


def test_two_sends_share_the_wire():
    cost = run(Start("a", send(3)), Start("b", send(4)), busy(5), Wait("a"), Wait("b"))
    assert (cost.seconds, cost.exposed_s, cost.hidden_s) == (7, 2, 5)
    second = run(Start("a", send(3)), Start("b", send(4)), busy(5), Wait("b"), busy(10))
    assert second.seconds == 17
    # A synchronous one waits for the wire too.
    assert run(Start("a", send(3)), send(4), Wait("a")).seconds == 7


def test_a_send_shares_the_wire_with_those_of_a_loop():
    inner = (send(2),)
    cost = run(Start("a", send(9)), Loop("l", 3.0, "b", "t"), Wait("a"), b=inner, t=())
    assert (cost.seconds, cost.communication_s) == (15, 15)
    after = run(Start("a", send(9)), Loop("l", 3.0, "b", "t"), send(1), busy(10), b=inner, t=())
    assert after.seconds == 26
    # Of a choice the side that sends more keeps the wire.
    sides = {"x": (send(6),), "y": (busy(7),)}
    assert run(Start("a", send(9)), Choice("c", ("x", "y")), send(1), **sides).seconds == 16


def test_what_nobody_waits_for_still_ends():
    assert run(Start("a", send(7)), busy(5)).exposed_s == 2
    late = run(Start("a", busy(7)), busy(1))
    assert (late.seconds, late.exposed_s, late.terms["memory"]) == (8, 0, 8)


def test_copies_beside_kernels_do_not_double_the_memory():
    cost = run(Start("c", busy(4, "c")), busy(4), Wait("c"))
    assert (cost.seconds, cost.terms["memory"]) == (8, 8)


def test_a_loop_multiplies_and_one_that_data_ends_is_looked_at():
    inner = {"b": (busy(2), send(1)), "t": (busy(1),)}
    cost = run(Loop("l", 10.0, "b", "t"), **inner)
    assert (cost.seconds, cost.memory_bytes, cost.link_bytes) == (40, 30, 10)
    assert run(Loop("l", 10.0, "b", "t", known=False), **inner).seconds == 45
    assert run(Loop("l", 0.0, "b", "t"), **inner).seconds == 0


def test_a_choice_takes_the_dearer_side_and_a_call_its_own():
    cost = run(Choice("c", ("x", "y")), x=(busy(3),), y=(busy(8),))
    assert (cost.seconds, cost.terms["memory"], cost.terms["launches"]) == (8.5, 8, 0.5)
    assert run(Call("x"), Call("x"), x=(busy(3),)).seconds == 6


def test_an_iteration_takes_as_long_as_the_longest_side_that_any_device_takes():
    taken = (
        Taken(Fraction(1, 4), frozenset(), 4),
        Taken(Fraction(1, 4), frozenset({0, 1}), 4),
        Taken(Fraction(2, 4), frozenset({1, 2, 3}), 4),
    )
    body = (Choice("c", ("idle", "x", "y"), taken),)
    cost = run(Loop("l", 4.0, "b", "t"), b=body, t=(), idle=(), x=(busy(3),), y=(busy(8), send(2)))
    assert cost.terms == {"memory": 3 + 3 * 8, "exposed communication": 3 * 2, "launches": 4 * 0.5}
    # The work is a device's own: one of the short side, two of the long one.
    assert (cost.memory_bytes, cost.link_bytes) == (3 + 2 * 8, 2 * 2)


def test_a_second_read_is_cheaper_while_the_cache_holds_the_array():
    size = RATES.l2_share * WHERE.gpu.l2_bytes
    twice = run(busy(10, "k", "x"), busy(10, "m", "x"))
    assert (twice.seconds, twice.memory_bytes) == (10 + 5, 10)
    # Only as many bytes as were read before.
    assert run(busy(4, "k", "x"), busy(10, "m", "x")).seconds == 4 + 4 / 2 + 6
    # What was written is there, too.
    assert run(Kernel("x", (), 10.0), busy(10, "m", "x")).seconds == 15
    # Another array as large as the cache has taken its place.
    between = run(busy(10, "k", "x"), busy(size, "big"), busy(10, "m", "x"))
    assert between.seconds == 20 + size
    through = run(busy(10, "k", "x"), busy(2 * size, "big"), busy(10, "m", "x"))
    assert through.seconds == 20 + 2 * size


def test_launches_are_their_own_term():
    rates = dataclasses.replace(RATES, launch_s=0.25)
    assert run(busy(1), busy(1), rates=rates).terms == {"memory": 2, "launches": 0.5}


def test_only_what_crosses_nodes_is_network_time():
    pairs = ((0, 8),)
    crossing = Send("s", dataclasses.replace(send(2).collective, pairs=pairs))
    cost = run(send(3), crossing)
    assert (cost.communication_s, cost.network_s) == (5, 2)


def reused(*body, held, before=(), count=4):
    """Bytes that a loop takes from device memory where it may reuse the cache."""
    steps = {"main": (*before, Loop("l", count, "body", "test", True, held)), "body": body,
             "test": ()}  # fmt: skip
    return estimate_cost(
        ExecutionTrace("main", steps, 16), WHERE, RATES, loops_reuse_cache=True
    ).memory_bytes


def reads(*arrays):
    return Kernel("k", tuple((name, float(size)) for name, size in arrays), 0.0)


def test_a_loop_reads_what_it_hands_on_once_where_that_is_asked():
    body, held = reads(("w", 100), ("x", 7)), (("w", "w outside", 100.0),)
    assert reused(body, held=held) == 100 + 4 * 7
    assert reused(body, held=()) == 4 * 107
    loop = Loop("l", 4, "body", "test", True, held)
    assert run(loop, body=(body,), test=()).memory_bytes == 4 * 107  # shipped rates are for this


def test_what_was_written_before_the_loop_is_there_the_first_time_too():
    copied = Kernel("w outside", (("all", 100.0),), 100.0)
    held = (("w", "w outside", 60.0), ("v", "w outside", 40.0))
    assert reused(reads(("w", 60), ("v", 40)), held=held, before=(copied,)) == 200


def test_another_part_of_an_array_is_not_there():
    """A slice whose index changes, beside one whose index the loop hands on."""
    held = (("stack", "s", 1000.0), ("n", "n", 4.0))
    changes, stays = reads(("stack", 10), ("number", 4)), reads(("stack", 10), ("n", 4))
    assert reused(changes, held=held) == 4 * 14
    assert reused(stays, held=held) == 14
    assert reused(changes, stays, held=held) == 4 * (14 + 4) - 3 * 4


def test_what_streams_through_leaves_nothing():
    big = RATES.l2_share * WHERE.gpu.l2_bytes * 2
    held = (("w", "w outside", 100.0),)
    body = reads(("w", 100)), reads(("keys", big))
    assert reused(*body, held=held) == 4 * (100 + big)
    assert reused(*body[::-1], held=held) == 4 * (100 + big)
