"""Formatting of numbers: three digits, correct rounding."""

import math

import pytest

from parallax.report import words
from parallax.report.exposure import exposure
from parallax.report.ledger_rows import ledger_rows
from parallax.report.table import passed_line
from tests.report import examples


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (words.in_bytes(84_942_979_072), "84.9 GB"),
        (words.in_bytes(0), "0 B"),
        (words.in_bytes(999_999_999), "1.00 GB"),
        (words.in_bytes(999), "999 B"),
        (words.in_flops(3.214e15), "3.21 PFLOP"),
        (words.in_seconds(31.03), "31.0 s"),
        (words.in_seconds(0.0312), "31.2 ms"),
        (words.in_seconds(4.1e-4), "410 us"),
        (words.in_seconds(2e-9), "2.00 ns"),
        (words.in_seconds(0.0), "0 s"),
        (words.in_tokens_per_s(1.45e6), "1.45M tokens/s"),
        (words.in_tokens_per_s(330_323), "330k tokens/s"),
        (words.in_tokens_per_s(12_800), "12,800 tokens/s"),
        (words.counted(1, "microbatch", "microbatches"), "1 microbatch"),
        (words.counted(1024, "device"), "1,024 devices"),
        (words.tokens(16, 1), "16 x 1 token"),
        (passed_line((examples.ring_result(),)).partition(":")[0], "1 strategy"),
        (words.markdown_row("a|b", "c"), "| a\\|b | c |"),
        (words.ratio(1.0), "1.00"),
        (words.ratio(1.0009), "1.0009"),
        (words.ratio(1.5999), "1.60"),
        (words.percent(0.1256), "13 %"),
        (words.percent(0.99998), ">99.9 %"),
        (words.percent(0.996), "99.6 %"),
        (words.percent(1.0), "100 %"),
        (words.percent(2.3e-5), "<0.1 %"),
        (words.percent(0.0), "0 %"),
        (words.times(4.394), "4.4x"),
        (words.error(3.14e-16), "3.1e-16"),
        (words.error(8.1e-4), "8.1e-4"),
        (words.error(math.inf), "not finite"),
        (words.digits(999.6), "1,000"),
        (words.digits(9.996), "10.0"),
        (words.axes_name(("stage", "tensor")), "stage x tensor"),
        (words.one_line("a\n b\x1b[31m"), "a b [31m"),
    ],
)
def test_words(found, text):
    assert found == text


def test_exposure_has_three_classes_that_sum_up():
    compiled = examples.ring_result().compilation
    assert compiled is not None
    found = exposure(compiled)
    assert (found.overlapped_count, found.idle_count, found.sync_count) == (7680, 0, 64)
    assert found.total_bytes == compiled.wire_bytes
    assert found.exposed_bytes == 31_457_280.0
    assert found.flops_between == 7680 * 3.2e9


def test_async_without_gemms_is_not_overlap():
    compiled = examples.tensor_result().compilation
    assert compiled is not None
    found = exposure(compiled)
    assert (found.overlapped_count, found.idle_count, found.sync_count) == (0, 390, 1)


def test_ledger_rows_join_what_has_one_kind_and_axes():
    compiled = examples.tensor_result().compilation
    assert compiled is not None
    rows = ledger_rows(compiled)
    assert (rows[0].kind, rows[0].axes, rows[0].count) == ("all-reduce", ("tensor",), 260)
    assert rows[0].what == "sum of attention, sum of MLP"
    assert rows[0].ratio == pytest.approx(65 / 64)
    assert sum(r.moved_bytes for r in rows) == compiled.wire_bytes


def test_ledger_rows_show_what_is_expected_and_not_there():
    compiled = examples.compilation(collectives=())
    rows = ledger_rows(compiled)
    assert [(r.count, r.moved_bytes, r.ratio) for r in rows] == [(0, 0, 0.0), (0, 0, 0.0)]


def test_no_closed_form_is_no_minimum():
    rows = ledger_rows(examples.compilation(has_closed_form=False, transfers=()))
    assert {r.minimum_bytes for r in rows} == {None}
    assert {r.ratio for r in rows} == {None}
