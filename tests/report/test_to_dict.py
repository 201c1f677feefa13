"""report.json: its schema, its numbers, its tags, and the request that runs it again."""

import json
import math
from importlib import resources

import jsonschema
import pytest

from parallax.report import SCHEMA_VERSION, load_request
from parallax.results.lens_results import TAGS
from tests.report import examples

SCHEMA = json.loads(
    (resources.files("parallax.report") / "report.schema.json").read_text(encoding="utf-8")
)
REPORTS = {
    "full": examples.report(),
    "failed": examples.report(
        results=(
            examples.tensor_result(
                compilation=examples.compilation(
                    memory=examples.too_big(), differences=(examples.difference(),)
                )
            ),
            examples.ring_result(verification=examples.verification(examples.exact_rows(math.inf))),
        )
    ),
    "several processes": examples.report(
        results=(examples.tensor_result(measurement=examples.measurement_of_two()),)
    ),
    "nothing ran": examples.report(
        paper=None,
        results=(
            examples.data_result(
                verification=None, compilation=None, prediction=None, measurement=None,
                skipped={"compile": "needs the aot extra"},
            ),
        ),
    ),
    "no closed form": examples.report(
        results=(
            examples.ring_result(
                compilation=examples.compilation(
                    has_closed_form=False, transfers=(),
                    collectives=(examples.collective("all-gather", ("seq",), 1e9, 3),
                                 examples.collective("all-reduce", None, 1e9, 3)),
                )
            ),
        )
    ),
}  # fmt: skip

# Settings, which are neither found nor claimed: plain numbers are right there.
PLAIN = {"request", "model", "workload", "strategy"}
PLAIN_NUMBERS = {"schema_version", "exit_status", "devices", "repeats", "process"}


@pytest.fixture(params=REPORTS, ids=str)
def report(request):
    return REPORTS[request.param]


def test_it_follows_the_schema(report):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(report.to_json()), SCHEMA)


def test_the_schema_refuses_what_is_not_there():
    broken = json.loads(REPORTS["full"].to_json())
    broken["results"][0]["compile"]["wire_bytes"] = 3.0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_tags_of_the_schema_are_those_of_the_results():
    assert SCHEMA["$defs"]["quantity"]["properties"]["tag"]["enum"] == list(TAGS)
    assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def test_text_and_dict_are_the_same(report):
    assert json.loads(report.to_json()) == json.loads(json.dumps(report.to_dict(), allow_nan=False))


def bare_numbers(data, where=""):
    """Places of numbers with no tag."""
    if isinstance(data, dict):
        if "value" in data and "tag" in data and "unit" in data:
            assert data["tag"] in TAGS
            return
        if set(data) == {"columns", "rows"}:
            yield from bare_columns(data, where)
            return
        for key, value in data.items():
            if key not in PLAIN:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if number and key not in PLAIN_NUMBERS:
                    yield f"{where}/{key}"
                yield from bare_numbers(value, f"{where}/{key}")
    elif isinstance(data, list):
        for i, value in enumerate(data):
            if isinstance(value, int | float):
                yield f"{where}/{i}"
            yield from bare_numbers(value, f"{where}/{i}")


def bare_columns(table, where):
    for i, column in enumerate(table["columns"]):
        values = [row[i] for row in table["rows"]]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        number = any(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if number and (column["tag"] not in TAGS or not column["unit"]):
            yield f"{where}/{column['name']}"


def test_every_number_has_unit_and_tag(report):
    assert list(bare_numbers(report.to_dict())) == []


def test_the_search_for_bare_numbers_finds_them():
    assert list(bare_numbers({"a": {"b": 3.0}})) == ["/a/b"]
    untagged = {"columns": [{"name": "n", "unit": "B", "tag": None}], "rows": [[1]]}
    assert list(bare_numbers({"t": untagged})) == ["/t/n"]


def column(table, name):
    i = [c["name"] for c in table["columns"]].index(name)
    return [row[i] for row in table["rows"]]


def test_numbers_come_through_unrounded():
    report = REPORTS["full"]
    data = json.loads(report.to_json())
    for result, found in zip(report.results, data["results"], strict=True):
        compiled = result.compilation
        assert compiled is not None
        assert found["compile"]["wire_bytes"]["value"] == compiled.wire_bytes
        assert found["compile"]["minimum_bytes"]["value"] == compiled.minimum_bytes
        assert found["compile"]["memory"]["total"]["value"] == compiled.memory.total_bytes
        assert sum(column(found["compile"]["ledger"], "bytes")) == compiled.wire_bytes
        each = found["compile"]["collectives"]
        assert column(each, "wire_bytes") == [c.wire_bytes for c in compiled.collectives]
        assert column(each, "count") == [c.count for c in compiled.collectives]
        assert result.prediction is not None
        assert found["predict"]["tokens_per_s"]["value"] == result.prediction.tokens_per_s.value
        assert result.verification is not None
        errors = column(found["verify"]["errors"], "logits_error")
        assert errors == [row.logits_error for row in result.verification.rows]


def test_what_is_not_finite_is_null():
    data = json.loads(REPORTS["failed"].to_json())
    assert column(data["results"][1]["verify"]["errors"], "logits_error")[0] is None
    assert data["failed"]
    assert data["exit_status"] == 1
    assert len(data["failures"]) == 3


def test_the_request_comes_back(tmp_path):
    path, _ = REPORTS["full"].save(tmp_path)
    assert load_request(path) == REPORTS["full"].request


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[1]", "not a report"),
        ('{"request": {"a": 1}}', "no 'schema_version'"),
        ('{"schema_version": 99, "request": {"a": 1}}', "schema_version is 99, .* reads 3"),
        ('{"schema_version": 3}', "'request' is missing"),
        ('{"schema_version": 3, "request": []}', "'request' is empty or not an object"),
        ("\udcff", "not JSON"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        load_request(path)
    assert "\n" not in str(caught.value)
    assert "--from_report=" in str(caught.value)


def test_each_process_is_in_the_measurement():
    data = REPORTS["several processes"].to_dict()["results"][0]["measure"]
    assert [(p["process"], p["host"], p["step"]["value"]) for p in data["processes"]] == [
        (0, "host0", 0.8), (1, "host1", 0.9),
    ]  # fmt: skip
    assert data["step"]["value"] == 0.9
    assert REPORTS["full"].to_dict()["results"][0]["measure"]["processes"] == []


def test_older_measurements_follow_the_schema():
    """Until several processes measured, there was neither `processes` nor `notes`."""
    old = json.loads(REPORTS["full"].to_json())
    for result in old["results"]:
        del result["measure"]["processes"], result["measure"]["notes"]
    jsonschema.validate(old, SCHEMA)
