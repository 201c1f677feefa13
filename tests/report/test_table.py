"""The terminal table: nothing cut off at 100 columns, every number row with its tag."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from parallax.bounds import Transfer
from parallax.report.fact_rows import fact_rows
from parallax.report.ledger_rows import ledger_rows
from parallax.report.sentences import describe_model
from parallax.results.lens_results import TAGS
from tests.report import examples


def printed(report, width=100):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(report)
    return out.getvalue()


def squeezed(text):
    """Without spaces and line breaks, in which folded cells differ."""
    return re.sub(r"[\s─]+", "", text)


def many(count):
    results = [examples.tensor_result(), examples.ring_result(), examples.data_result()]
    strategies = [results[i % 3] for i in range(count)]
    return tuple(
        replace(r, strategy=r.strategy | {"name": f"{r.name}_{i}"})
        for i, r in enumerate(strategies)
    )


@pytest.mark.parametrize("width", [100, 120])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_no_cell_is_cut(width, count):
    report = examples.report(results=many(count))
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in fact_rows(report.results, report.paper):
        assert row.label in text
        for cell in row.cells:
            assert cell is None or cell.text in text, f"{row.label}: {cell.text}"
    for result in report.results:
        assert result.name in text
        assert result.compilation is not None
        for row in ledger_rows(result.compilation):
            assert row.kind in text
            assert row.what.split()[0] in text
    assert text.count("24.6 TFLOP") == 2 * sum("ring" in r.name for r in report.results)


def test_a_wide_ledger_is_not_cut():
    rows = (
        examples.collective("collective-permute", ("head_group", "head_slice"), 9.99e14, 123_456,
                            is_async=True, gemms_between=1, flops_between=9.99e12),
        examples.collective("collective-permute", ("head_group", "head_slice"), 9.99e14, 100_000),
    )  # fmt: skip
    result = examples.ring_result(
        compilation=examples.compilation(collectives=rows, has_closed_form=False, transfers=())
    )
    text = printed(examples.report(results=(result,)))
    for piece in ("223,456", "head_group", "head_slice", "123,456", "1.23 EFLOP", "2.00 PB"):
        assert piece in text


def test_a_ledger_with_long_purposes_is_not_cut():
    """Of a training step: many purposes in one row, and axes in two words."""
    rows = tuple(
        examples.collective("collective-permute", ("stage", "tensor"), 8.06e9 / n, n, is_async=True,
                            gemms_between=1, flops_between=4.27e12)
        for n in (62, 65)
    )  # fmt: skip
    told = ("widen embeddings and handoffs", "widen the last stage's result",
            "widen the handoff's gradient", "gradient into attention")  # fmt: skip
    transfers = tuple(
        Transfer("loss", what, "collective-permute", ("stage", "tensor"), 1e9, 1, 1e9)
        for what in told
    )
    result = examples.ring_result(
        compilation=examples.compilation(
            collectives=(*rows, replace(rows[0], count=2, is_async=False, flops_between=0.0)),
            transfers=transfers,
        )
    )
    ledger = printed(examples.report(results=(result,))).split("Ledger of")[1]
    for piece in ("between", "127 of 129", "542 TFLOP"):
        assert piece in ledger


def test_every_row_has_a_known_tag_and_the_legend_explains_it():
    report = examples.report()
    text = printed(report)
    for row in fact_rows(report.results, report.paper):
        assert row.tag in TAGS
        assert re.search(rf"{re.escape(row.label)}\s+{row.tag}\s", text), row.label
    assert all(squeezed(f"{tag}: {meaning}") in squeezed(text) for tag, meaning in TAGS.items())


def test_the_five_questions_are_answered():
    text = printed(examples.report())
    for piece in ("Exact?", "Fits?", "Moves?", "Exposed?", "Claimed?"):
        assert piece in text
    # How much is hidden is for the model to say, never for the compiled program.
    assert all(
        row.tag == "modelled"
        for row in fact_rows(examples.report().results, examples.RING_SP)
        if "hidden" in row.label
    )


def test_what_fails_is_said_last_and_plainly():
    result = examples.ring_result(
        compilation=examples.compilation(memory=examples.too_big()),
        verification=examples.verification(examples.exact_rows(1e-3)),
    )
    last = squeezed(printed(examples.report(results=(result,))).split("FAILED:")[1])
    assert squeezed("ring_sequence is not exact in float64") in last
    said = "does not fit: 91.0 GB per device, 12.9 GB more than the usable 78.1 GB"
    assert squeezed(said) in last


def test_what_was_not_run_is_said():
    why = {"compile": "needs the [aot] extra\nof the package"}
    result = examples.data_result(compilation=None, prediction=None, skipped=why)
    report = examples.report(results=(examples.ring_result(), result), lenses=("verify", "compile"))
    text = " ".join(printed(report).split())
    assert "Lenses not asked for: predict, measure" in text
    assert "compile did not run for data_parallel: needs the [aot] extra of the package" in text
    assert "exact, fits (1 of 2 checked)" in text


def of_paper(name):
    paper = examples.paper(name)
    report = examples.report(paper=paper, config=paper.config, workload=paper.workload)
    return " ".join(printed(report).split())


def test_a_papers_own_formats_and_systems_that_did_not_run_are_said():
    assert "ask for it with --compression=int8,int8+2:4" in of_paper("compressed_layerwise")
    not_run = of_paper("two_level")
    assert "--compression" not in not_run
    assert "two_level: claimed 1.58M tokens/s; not compared: this strategy was not run" in not_run


def test_names_with_markup_are_printed_as_they_are():
    for made in (examples.ring_result, examples.data_result):
        result = made(strategy={"name": "[red]x[/red]"}, description="[bold]")
        assert "[red]x[/red]" in printed(examples.report(results=(result,)))


def test_the_claims_audit_is_counted():
    text = printed(examples.report())
    assert "Claims audit" in text
    assert "9 figures: " in text
    assert "parallax claims --paper=ring_sp" in text


def test_the_slowest_process_is_named_with_its_host():
    apart, alike = examples.measurement_of_two(), examples.measurement_of_two(0.81)
    results = (
        examples.tensor_result(measurement=apart),
        examples.ring_result(measurement=alike),
    )
    text = " ".join(printed(examples.report(results=results)).split())
    assert re.search(r"slowest process here measured 1 \(host1\), \+12 % 1 \(host1\)", text)
    assert (
        "tensor_pipeline, slowest of 2: process 1 (host1), 900 ms (least: 800 ms); ring_sequence, "
        "slowest of 2: process 1 (host1), 810 ms (least: 800 ms; the intervals overlap)."
    ) in text
    assert "tensor_pipeline: mesh over 2 nodes: 'stage' crosses them" in text
    alone = printed(examples.report())
    assert "slowest" not in alone
    assert "processes are done" not in alone


def test_a_model_s_size_is_in_billions_only_where_it_has_some():
    config = examples.report().config
    tiny = config.replace(
        num_layers=1, d_model=64, num_heads=8, num_kv_heads=8, head_dim=8, d_ff=64, vocab_size=500
    )
    assert describe_model(config).endswith("B parameters")
    assert re.search(r", [1-9]\d,\d00 parameters$", describe_model(tiny))
