"""Several papers on one page."""

import dataclasses
import io

from rich.console import Console

from parallax.report import overview_table
from tests.report import examples


def printed(reports):
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=False).print(overview_table(reports))
    return out.getvalue()


def paper_report(name):
    it = examples.paper(name)
    return examples.report(paper=it, config=it.config, workload=it.workload)


def test_each_paper_and_strategy_has_a_line_that_fits_the_page():
    reports = [paper_report("ring_sp"), paper_report("two_level")]
    text = printed(reports)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    for report in reports:
        assert report.paper is not None
        assert any(line.startswith(report.paper.name) for line in lines)
        for result in report.results:
            assert any(line.split()[:1] == [result.name] for line in lines)
    assert "1.45M" in text


def test_claimed_modelled_bound_and_verdict_stand_in_one_line():
    line = next(x for x in printed([paper_report("ring_sp")]).splitlines() if "ring_sequence" in x)
    assert "206k*" in line  # modelled; no measurement stands behind the time between nodes
    assert "330k" in line
    assert "1.45M" in line
    assert "beyond 3.6x" in line


def test_what_fails_is_said():
    report = paper_report("ring_sp")
    assert "All are exact" in printed([report])
    left_out = dataclasses.replace(report.results[0], compilation=None, prediction=None)
    text = printed([dataclasses.replace(report, results=(left_out, *report.results[1:]))])
    assert "All are exact" not in text
    assert "fits (" in text.splitlines()[-1]
    first, *rest = report.results
    assert first.compilation is not None
    memory = dataclasses.replace(first.compilation.memory, temp_bytes=10**12)
    broken = dataclasses.replace(
        first, compilation=dataclasses.replace(first.compilation, memory=memory)
    )
    text = printed([dataclasses.replace(report, results=(broken, *rest))])
    assert "(!)" in text
    assert "A strategy fails in ring_sp" in text
