"""A damaged text gives the same ledger or an HloError, never a different ledger."""

import dataclasses
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.hlo import HloError, parse_module, read_ledger
from parallax.hlo.flops import module_flops

WHOLE = """\
HloModule m, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (p: f32[8,4]) -> f32[8,8] {
  %p = f32[8,4]{1,0} parameter(0)
  %r = f32[8,4]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}, \
use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(f)/psum \\"q\\" {("}
  ROOT %d = f32[8,8]{1,0} dot(%r, %p), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
"""
AXES = {"a": 2, "b": 2}


def _account(text, axes):
    module = parse_module(text)
    rows = [dataclasses.replace(c, op_name="", name="") for c in read_ledger(module, axes)]
    return sorted(map(repr, rows)), module_flops(module)


def test_a_module_by_hand():
    (moved,) = read_ledger(WHOLE, AXES)
    assert (moved.kind, moved.axes, moved.wire_bytes) == ("all-reduce", ("b",), 8 * 4 * 4)
    assert module_flops(parse_module(WHOLE)).high == 2 * 8 * 8 * 4
    entry = parse_module(WHOLE).computation("main")
    assert [i.line for i in entry.instructions] == [10, 11, 12]
    assert entry.instructions[2].operands == ("r", "p")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("replica_groups=", "groups=", "line 11.*expected replica_groups="),
        (" all-reduce(", " all-reduze(", "line 11.*not understood"),
        (" dot(", " dit(", "line 12.*not understood"),
        ("dot(%r, %p)", "dot(%r)", "expected two operands"),
        ("dot(%r, %p)", "dot(%r, %q)", "line 12: %d takes %q"),
        ("dot(%r, %p)", "dot(%r, (p))", "line 12: expected operands"),
        ("f32[8,8]{1,0} dot", "f32[8,9]{1,0} dot", "is not"),
        ("%r = f32[8,4]", "%r = f32[8,5]", "line 11.*bytes back"),
        ("{{0,1},{2,3}}", "{{0,1},{2,4}}", "line 11.*each once"),
        ("num_partitions=4", "num_partitions=x", "line 1"),
        ("num_partitions=4", "num_partitions=4, replica_count=2", "replica_count"),
        ("channel_id=1, ", "", "expected channel_id="),
        ("use_global_device_ids=true", "use_global_device_ids=false", "other groups are meant"),
        ("to_apply=%add", "to_apply=%ad", "%ad, which is not defined"),
        ("to_apply=%add", "to_apply=%main", "in a circle"),
        ("  %y = ", "  %x = ", "is defined twice"),
        ("  ROOT %d", "  %d", "expected one ROOT"),
        ("ENTRY %main", "%main", "no ENTRY"),
        ("%add (x", "ENTRY %add (x", "second ENTRY"),
        ("channel_id=1", "channel_id=1, channel_id=2", "each once"),
        ("HloModule", "Module", "line 1: expected 'HloModule"),
        ("f32[8,4]{1,0} parameter", "f33[8,4]{1,0} parameter", "line 10.*unknown dtype"),
    ],
)
def test_errors_say_where_and_what(old, new, why):
    assert WHOLE.count(old) >= 1
    with pytest.raises(HloError, match=re.compile(why, re.DOTALL)):
        _account(WHOLE.replace(old, new, 1), AXES)


def test_an_unknown_element_wise_opcode_is_let_through():
    text = WHOLE.replace("f32[] add(%x, %y)", "f32[] some-new-thing(%x, %y), mode=fast")
    assert _account(text, AXES) == _account(WHOLE, AXES)


@given(st.integers(0, len(WHOLE.rstrip()) - 1))
def test_text_that_is_cut_off_is_refused(end):
    with pytest.raises(HloError):
        parse_module(WHOLE[:end])


def _damaged(text, how, rng):
    """One line, and it after the damage."""
    lines = text.split("\n")
    at = rng.randrange(1, len(lines) - 1)
    line = lines[at]
    if how == "drop a line":
        del lines[at]
    elif how == "repeat a line":
        lines.insert(at, line)
    elif how == "swap two lines":
        lines[at], lines[at - 1] = lines[at - 1], lines[at]
    elif line:
        places = [i for i, c in enumerate(line) if how == "change a digit" or not c.isdigit()]
        digits = [i for i, c in enumerate(line) if c.isdigit()] or places
        if how == "change a digit":
            i = rng.choice(digits)
            lines[at] = line[:i] + str(rng.randrange(10)) + line[i + 1 :]
        elif how == "drop a character":
            i = rng.choice(places)
            lines[at] = line[:i] + line[i + 1 :]
        else:
            i = rng.choice(places)
            lines[at] = line[:i] + rng.choice('(){}[],%="x-') + line[i + 1 :]
    return "\n".join(lines), line


@pytest.mark.parametrize(
    "how",
    ["drop a line", "repeat a line", "swap two lines", "drop a character", "change a character",
     "change a digit"],
)  # fmt: skip
def test_a_damaged_program_is_refused_or_read_the_same(five_float16, how):
    text, axes = five_float16.text.rstrip() + "\n", five_float16.axes
    expected = _account(text, axes)
    rng = random.Random(how)
    refused = 0
    for _ in range(150):
        damaged, line = _damaged(text, how, rng)
        try:
            found = _account(damaged, axes)
        except HloError:
            refused += 1
            continue
        # These can turn one sound program into another: then only a crash would be wrong.
        another = how in ("change a digit", "swap two lines")
        assert another or found == expected, line
    assert refused > 10


def test_cutting_a_real_program_anywhere(five_float16):
    text = five_float16.text.rstrip()
    rng = random.Random(0)
    for _ in range(60):
        with pytest.raises(HloError):
            parse_module(text[: rng.randrange(len(text))])


ASYNC = """\
HloModule m, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%wrapped (q: f32[8,8]) -> f32[4,8] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %rs = f32[4,8]{1,0} reduce-scatter(%q), channel_id=1, replica_groups=[2,2]<=[4], \
use_global_device_ids=true, dimensions={0}, to_apply=%add
}

%product (l: f32[8,8]) -> f32[8,8] {
  %l = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} dot(%l, %l), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (p: f32[8,8]) -> (f32[4,8], f32[8,8]) {
  %p = f32[8,8]{1,0} parameter(0)
  %s = ((f32[8,8]{1,0}), f32[4,8]{1,0}) async-start(%p), calls=%wrapped
  %g = ((f32[8,8]{1,0}), f32[8,8]{1,0}) fusion-start(%p), kind=kCustom, calls=%product
  %h = f32[8,8]{1,0} fusion-done(%g), kind=kCustom, calls=%product
  %d = f32[4,8]{1,0} async-done(%s), calls=%wrapped
  ROOT %t = (f32[4,8]{1,0}, f32[8,8]{1,0}) tuple(%d, %h)
}
"""


def test_what_a_start_wraps_is_counted_once_and_async():
    (moved,) = read_ledger(ASYNC, AXES)
    assert (moved.kind, moved.axes, moved.count) == ("reduce-scatter", ("b",), 1)
    assert moved.wire_bytes == 8 * 8 * 4 / 2
    assert (moved.is_async, moved.gemms_between, moved.flops_between) == (True, 1, 2 * 8**3)
    assert module_flops(parse_module(ASYNC)).gemms == 1


def test_a_start_that_says_it_is_synchronous_is_not_async():
    attribute = 'calls=%wrapped, backend_config={"is_sync":true}'
    (moved,) = read_ledger(ASYNC.replace("calls=%wrapped", attribute, 1), AXES)
    assert (moved.is_async, moved.gemms_between) == (False, 0)


def test_a_start_without_its_done_is_refused():
    text = ASYNC.replace("async-done(%s), calls=%wrapped", "slice(%p), slice={[0:4], [0:8]}")
    with pytest.raises(HloError, match="never waited for"):
        read_ledger(text, AXES)
