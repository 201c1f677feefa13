"""A profile in every form of a report: the largest errors first, the unattributed named."""

import json
from dataclasses import replace

import jsonschema
import pytest

from parallax.report.profile_section import TITLE, profile_grid, profile_plot
from parallax.results.profile_results import LARGEST, OperationProfile, OperationTime
from tests.report import examples
from tests.report.test_table import printed
from tests.report.test_to_dict import SCHEMA, bare_numbers, column


def operation(n, modelled_s):
    return OperationTime(
        f"fusion.{n}", "fusion", f"/home/user/model/mlp.py:{n}", "jit(run)/mlp", 4.0,
        4.0 if n else 8.0, (n + 1) * 1e-5, modelled_s,
    )  # fmt: skip


def profile(modelled=True) -> OperationProfile:
    return OperationProfile(
        trace="out/profile/x/plugins/profile/now/host.xplane.pb", device="NVIDIA H100", devices=8,
        steps=3, operations=tuple(operation(n, 1e-5 if modelled else None)
                                  for n in reversed(range(12))),
        unattributed={f"Memcpy<{n}>": 1e-6 for n in range(8)}, busy_s=7e-4, span_s=9e-4,
        rates="h100 rates 1, h100_1x8" if modelled else "",
        notes=() if modelled else ("no modelled times: a CPU",),
        runtime={} if modelled else {"ThunkExecutor::Execute": 2e-5},
    )  # fmt: skip


def report(modelled=True):
    result = examples.ring_result()
    assert result.measurement is not None
    measured = replace(result.measurement, profile=profile(modelled))
    return examples.report(results=(replace(result, measurement=measured),))


def test_the_terminal_and_the_page_show_the_ten_largest():
    text, page = " ".join(printed(report()).split()), report().html()
    for shown in (text, page):
        assert f"{TITLE}: ring_sequence" in shown
        assert "fusion.11" in shown
        assert "fusion.2" in shown
        assert "fusion.1 " not in shown
        assert "model/mlp.py:11" in shown
        assert "/home/user" not in shown
        assert "-110 us" in shown
        assert "h100 rates 1, h100_1x8" in shown
    assert "99 % of 788 us device time is of operations of the compiled program" in text
    assert "Memcpy<0>" in text
    assert "2 more 2.00 us" in text
    assert 'aria-label="Measured time of operations, beside modelled time"' in page
    assert "Memcpy&lt;0&gt;" in page
    assert "<0>" not in page


def test_without_modelled_times_there_is_no_column_of_them():
    grid = profile_grid("x", profile(modelled=False))
    assert [name for name, _ in grid.heads] == ["operation", "source", "executions", "measured"]
    assert len(grid.rows) == LARGEST
    assert "no modelled times: a CPU" in grid.lines
    assert "Host threads outside of operations: ThunkExecutor::Execute 20.0 us." in grid.lines
    assert "modelled" not in profile_plot(profile(modelled=False), "p").split("<g", 1)[1]
    assert "errors" not in grid.lines[0]


def test_launches_are_said_where_they_differ():
    rows = profile_grid("x", replace(profile(), operations=(operation(0, 1e-5),))).rows
    assert rows[0][2].text == "4.00 (8.00 launches)"


def test_nothing_to_plot_is_no_plot():
    assert profile_plot(replace(profile(), operations=()), "p") == ""


@pytest.mark.parametrize("modelled", [True, False])
def test_the_record_has_every_operation(modelled):
    data = json.loads(report(modelled).to_json())
    jsonschema.validate(data, SCHEMA)
    assert list(bare_numbers(data)) == []
    found = data["results"][0]["measure"]["profile"]
    assert column(found["operations"], "operation") == [f"fusion.{n}" for n in range(11, -1, -1)]
    assert found["attributed_share"]["value"] == pytest.approx(7.8e-4 / 7.88e-4)
    assert column(found["operations"], "source")[0] == "/home/user/model/mlp.py:11"
    assert len(found["unattributed"]) == 8
    assert (found["modelled_time"] is None) == (not modelled)
    errors = column(found["operations"], "error")
    assert errors[0] == (pytest.approx(-1.1e-4) if modelled else None)
