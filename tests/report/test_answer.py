"""The answer of a report: right over any table, and never of what failed or was not checked."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from parallax.report.answer import Choice, answer_comparison, answer_sweep, recommend
from parallax.results.lens_results import Figure
from parallax.results.sweep_results import PointFigures, Sweep, SweepPoint
from tests.report import examples
from tests.report.test_table import printed

_SECONDS = st.floats(1e-3, 1e3)
_RESULTS = (examples.ring_result, examples.tensor_result, examples.data_result)


def predicted(step_s: float, bar: float, exposed: float):
    value = examples.prediction()
    return replace(
        value,
        step_s=Figure(step_s, "s", "modelled", step_s / bar, step_s * bar),
        tokens_per_s=Figure(1e6 / step_s, "tokens/s", "modelled"),
        exposed_s=Figure(exposed * step_s, "s", "modelled"),
    )


@st.composite
def tables(draw):
    results = []
    for make in _RESULTS:
        fits = draw(st.booleans())
        size = examples.memory() if fits else examples.too_big()
        compiled = replace(examples.compilation(), memory=size)
        step = predicted(draw(_SECONDS), draw(st.floats(1.0, 2.0)), draw(st.floats(0.0, 1.0)))
        results.append(make(compilation=compiled, prediction=step))
    return tuple(results)


@given(tables())
def test_it_names_the_fastest_of_those_that_can_be_taken(results):
    said = answer_comparison(results)
    able = [r for r in results if r.compilation.memory.fits]
    if not able:
        assert said.startswith("Take none of these")
        return
    best = max(able, key=lambda r: r.prediction.tokens_per_s.value)
    assert said.startswith(f"Take {best.name}: ")
    for r in results:
        if r not in able:
            faster = r.prediction.step_s.value < best.prediction.step_s.value
            assert f"{r.name} {'would be faster but ' if faster else ''}does not fit" in said


@given(tables())
def test_doubt_is_said_exactly_where_error_bars_overlap(results):
    able = [r for r in results if r.compilation.memory.fits]
    if not able:
        return
    best = min(able, key=lambda r: r.prediction.step_s.value)
    high = best.prediction.step_s.high
    close = [r for r in able if r is not best and r.prediction.step_s.low <= high]
    assert ("In doubt" in answer_comparison(results)) == bool(close)


@given(st.lists(st.tuples(_SECONDS, st.floats(0.0, 1.0)), min_size=2, max_size=6))
def test_another_network_changes_the_choice_exactly_where_it_says_so(costs):
    choices = [
        Choice(f"s{i}", Figure(cost, "s", "modelled"), "", share * cost)
        for i, (cost, share) in enumerate(costs)
    ]
    said = recommend(choices)
    best = min(choices, key=lambda c: c.cost.value)
    for factor, words in ((0, "With all communication hidden"), (2, "With twice as much exposed")):
        other = min(choices, key=lambda c: c.cost.value + (factor - 1) * c.exposed)
        at_best = best.cost.value + (factor - 1) * best.exposed
        leads = other.cost.value + (factor - 1) * other.exposed < at_best
        sentences = [s for s in said.split(". ") if s.startswith(words)]
        assert bool(sentences) == leads
        assert not leads or f"{other.name} would lead" in sentences[0]


def test_by_how_much_and_what_has_no_support():
    ring = examples.ring_result(prediction=predicted(2.0, 1.01, 0.0))
    said = answer_comparison((ring, examples.data_result(prediction=predicted(1.0, 1.01, 0.0))))
    assert "1.00M tokens/s (modelled), 2.00 times as fast as ring_sequence." in said
    assert "No published measurement" in said  # those of the example: time between nodes
    assert "communication" not in said  # none is exposed


def test_what_was_not_checked_is_said():
    only = examples.ring_result(verification=None, prediction=predicted(1.0, 1.1, 0.0))
    assert "Whether ring_sequence is exact was not checked." in answer_comparison((only,))
    said = answer_comparison((replace(only, verification=examples.verification()),))
    assert "was not checked" not in said


def test_without_predictions_there_is_no_answer():
    left = examples.ring_result(prediction=None, skipped={"predict": "no compiler."})
    assert answer_comparison((left,)) == "No answer which is fastest: no compiler."
    assert "Take" not in answer_comparison((replace(left, skipped={}),))


def test_a_strategy_that_is_not_exact_is_never_taken():
    wrong = examples.verification(examples.exact_rows(1e-3))
    results = (
        examples.ring_result(verification=wrong, prediction=predicted(0.1, 1.1, 0.0)),
        examples.data_result(prediction=predicted(1.0, 1.1, 0.0)),
    )
    said = answer_comparison(results)
    assert said.startswith("Take data_parallel")
    assert "ring_sequence would be faster but is not exact." in said


def test_what_would_make_it_fit_is_part_of_the_answer():
    big = replace(examples.compilation(), memory=examples.too_big())
    said = answer_comparison(
        (
            examples.ring_result(
                compilation=big, knob="by closed form it fits with --batch=8 (3 GB)"
            ),
        )
    )
    assert "usable; by closed form it fits with --batch=8 (3 GB)." in said


def test_every_form_of_the_report_has_it():
    report = examples.report()
    assert report.to_dict()["answer"] == report.answer
    flat = " ".join(printed(report).split())
    assert flat.endswith(report.answer)
    page = report.html()
    assert page.index('class="answer"') < page.index('class="verdict')


def test_a_sweep_says_who_leads_where():
    def figures(step_s: float, fits: bool = True) -> PointFigures:
        one = Figure(1.0 if fits else 3.0, "B", "compiled")
        return PointFigures(
            one, Figure(2.0, "B", "assumed"), one, None, one,
            Figure(step_s, "s", "modelled", 0.95 * step_s, 1.05 * step_s),
            Figure(1 / step_s, "tokens/s", "modelled"), "compute", True,
        )  # fmt: skip

    steps = {"a": (1.0, 1.0, 4.0), "b": (2.0, 1.04, 2.0)}
    points = [
        SweepPoint(name, value, found=figures(step))
        for name, found in steps.items()
        for value, step in zip((10, 20, 4000), found, strict=True)
    ]
    points.append(SweepPoint("c", 10, found=figures(0.1, fits=False)))
    said = answer_sweep(Sweep("batch", (10, 20, 4000), "", tuple(points)))
    assert said == (
        "Take a from batch 10 to 20, b at batch 4,000. In doubt: at batch 20 other error bars "
        "overlap the first's."
    )
    points.append(SweepPoint("a", 9000, found=figures(1.0, fits=False)))
    said = answer_sweep(Sweep("batch", (10, 9000), "", tuple(points)))
    assert said == "Take a at batch 10. Nothing that is compiled fits at batch 9,000."
