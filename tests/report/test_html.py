"""report.html: one file that needs nothing else, escapes all text, answers first."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from parallax.results.lens_results import TAGS
from tests.report import examples

VOID = {"meta", "br", "wbr", "link", "img", "input", "hr"}
INLINE = {"span", "b", "code", "small", "strong"}


class Page(HTMLParser):
    """Tags, attributes and text; fails on tags that do not close."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag not in INLINE:
            self.text.append(" ")

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page():
    return examples.report().html()


def test_it_needs_nothing_else(page):
    found = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(found.tags)
    assert not re.search(r"https?:|@import|//[a-z]", page)
    addresses = [v for k, v in found.attributes if k in ("src", "href", "xlink:href", "srcset")]
    assert all(v.startswith("#") for v in addresses)
    assert all(v.startswith("url(#") for v in re.findall(r"url\([^)]", page))
    assert not [k for k, _ in found.attributes if k.startswith("on")]


def test_it_is_small_even_with_much_to_draw():
    results = tuple(
        replace(r, strategy=r.strategy | {"name": f"{r.name}_{i}"},
                compilation=examples.compilation(timeline=examples.timeline(20_000)))
        for i, r in enumerate(2 * examples.report().results)
    )  # fmt: skip
    text = examples.report(results=results).html()
    assert len(text.encode()) <= 2_000_000
    assert "the 600 longest are drawn" in text


def test_the_first_screen_answers_six_questions(page):
    screen = Page(page[page.index('<section class="answers"') : page.index("</section>") + 10])
    text = " ".join("".join(screen.text).split())
    for piece in (
        "Exact?",
        "Fits?",
        "Moves, against the minimum?",
        "Exposed?",
        "How fast?",
        "Claimed?",
    ):
        assert piece in text
    for piece in (
        "exact",
        "float64: logits 3.1e-16, gradients 6.2e-16 measured",
        "9.81 GB per device compiled",
        "1.02x minimum compiled",
        "minimum 1.34 TB derived",
        "43.4 s exposed modelled",
        "206k tokens/s, unvalidated modelled",
        "TTFT of the batch 49.6 s, 40.3 s to 62.1 s modelled",
        "<0.1 % of bytes with no GEMM between compiled",
        "4.4x the roofline modelled",
        "1.45M tokens/s claimed",
    ):
        assert piece in text, piece
    assert page.index('<p class="answer">') < page.index("<svg") < page.index("<section")
    assert page.index("<section") < page.index("<h2>")
    assert "<details" not in page[: page.index("<section")]


def test_every_number_of_the_first_screen_has_a_tag(page):
    screen = page[page.index('<section class="answers"') : page.index("</section>")]
    parts = re.findall(r'<div class="part">(.*?)</div>', screen)
    assert len(parts) > 20
    parts += re.findall(r'<div class="headline[^>]*>(.*?)</div>', screen)
    for part in (p for p in parts if re.search(r"\d", p)):
        assert re.search(rf'<span class="tag" title="[^"]*">({"|".join(TAGS)})</span>$', part), part


def test_a_name_with_mathematics_is_drawn_as_it_is():
    result = examples.ring_result(strategy={"name": "a$x^2$b"})
    assert "a$x^2$b" in "".join(
        re.findall(r"<svg.*?</svg>", examples.report(results=(result,)).html(), re.DOTALL)
    )


def test_hostile_names_stay_text():
    evil = "<script>alert(1)</script>\"'&{{7*7}}$x^{\\frac"
    result = examples.ring_result(
        strategy={"name": evil}, description=evil, skipped={"measure": evil}, measurement=None
    )
    report = examples.report(results=(result,), request={evil: evil}, versions={evil: evil})
    for text in (report.html(), report._repr_html_()):
        found = Page(text)
        assert "script" not in found.tags
        assert "alert(1)" in "".join(found.text)
        assert "{{7*7}}" in "".join(found.text)


def test_plots_are_svg_with_ids_of_their_own(page):
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 4  # throughput, memory, bytes, all schedules
    for plot in plots:
        ET.fromstring(plot.replace("<svg", '<svg xmlns:xlink="x"', 1))
        assert 'role="img"' in plot
        assert "<title>" in plot
        assert not re.search(r"#0[0-9a-f]{5}\b", plot)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', page))
    assert used <= set(ids)


def test_a_page_with_nothing_run_still_says_so():
    empty = examples.data_result(verification=None, compilation=None, prediction=None,
                                 measurement=None,
                                 skipped={"compile": "needs the aot extra"})  # fmt: skip
    text = examples.report(paper=None, results=(empty,)).html()
    assert "<svg" not in text
    assert "compile: needs the aot extra" in text
    assert "nothing was checked" in text


def test_failures_are_at_the_top():
    result = examples.ring_result(compilation=examples.compilation(memory=examples.too_big()))
    text = examples.report(results=(result,)).html()
    assert 'class="verdict bad"' in text
    assert "ring_sequence does not fit: 91.0 GB per device" in text
    assert text.index("does not fit") < text.index("<section")


def test_the_notebook_gets_a_piece_and_the_file_a_document(page):
    piece = examples.report()._repr_html_()
    assert page.startswith("<!doctype html>")
    assert "<html" not in piece
    assert piece.strip().endswith("</div>")
    style = piece[piece.index("<style>") + 7 : piece.index("</style>")]
    selectors = re.findall(r"^\s*([^@{}\s][^{}]*)\{", style, re.MULTILINE)
    assert selectors
    assert all(s.strip().startswith(".parallax-report") for s in selectors), selectors


def test_the_same_report_gives_the_same_page(page):
    assert examples.report().html() == page


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    examples.report().html()
    assert dict(matplotlib.rcParams) == before


def test_the_claims_audit_has_every_figure(page):
    text = " ".join("".join(Page(page).text).split())
    assert "Claims audit" in text
    for claim in examples.RING_SP.claims:
        assert f"{claim.printed} {claim.unit}" in text
        assert claim.reason in text
