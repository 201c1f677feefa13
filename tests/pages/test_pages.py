"""Every page in a browser: light, dark, on a phone, printed; nothing is fetched, axe is content."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pages.written import PAGES

pytestmark = pytest.mark.full

DESK, PHONE = (1280, 900), (390, 844)
MOST_BYTES = 2_000_000
LEAST_TEXT_PX = 11
# Sizes of text as drawn: an SVG scales its own.
SMALL_TEXT = """least => {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), of = walk.currentNode.parentElement;
    if (!text || of.closest("script, style, title, option")) continue;
    if (!of.getClientRects().length) continue;
    const scale = of.getScreenCTM ? Math.hypot(of.getScreenCTM().a, of.getScreenCTM().b) : 1;
    const size = parseFloat(getComputedStyle(of).fontSize) * scale;
    if (size < least - 0.05) found.push(`${size.toFixed(1)} px: ${text.slice(0, 40)}`);
  }
  return found.slice(0, 20);
}"""
BROKEN_NUMBERS = """() => [...document.querySelectorAll(".number")].filter(
  cell => cell.getClientRects().length && getComputedStyle(cell).whiteSpace !== "nowrap"
).map(cell => cell.textContent)"""
UNSCOPED_HEADS = "() => [...document.querySelectorAll('th:not([scope])')].map(e => e.textContent)"
UNTITLED = "() => [...document.querySelectorAll('table')].filter(t => !t.caption).length"


@dataclass
class Visit:
    """An open page, with what it said and asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes a page once and returns its path."""
    folder, written = tmp_path_factory.mktemp("pages"), {}

    def file(name: str) -> Path:
        if name not in written:
            written[name] = folder / f"{name}.html"
            written[name].write_text(PAGES[name](), encoding="utf-8")
        return written[name]

    return file


@pytest.fixture
def visit(browser, files):
    """Opens a page at a size and in a colour scheme."""
    contexts = []

    def opened(name: str, size=DESK, scheme="light") -> Visit:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
        )
        contexts.append(context)
        found = Visit(context.new_page())
        found.page.on("console", lambda m: m.type == "error" and found.errors.append(m.text))
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(files(name).as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()


def violations(page) -> list[str]:
    """What axe calls serious or critical, one line per rule with the first elements."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        f"{v['id']}: {v['help']}: " + "; ".join(node["html"][:160] for node in v["nodes"][:3])
        for v in Axe().run(page).response["violations"]
        if v["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("name", PAGES)
def test_it_fetches_nothing_and_says_nothing(name, visit, files):
    found = visit(name)
    assert found.errors == []
    assert found.requests == [files(name).as_uri()]
    assert files(name).stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(name, scheme, visit):
    page = visit(name, scheme=scheme).page
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    assert violations(page) == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_it_fits_and_can_be_read(name, size, visit):
    page = visit(name, size).page
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate(SMALL_TEXT, LEAST_TEXT_PX) == []
    assert page.evaluate(BROKEN_NUMBERS) == []


@pytest.mark.parametrize("name", PAGES)
def test_the_answer_is_on_the_first_screen(name, visit):
    page = visit(name).page
    answers = page.locator("h1 + .answer")
    assert answers.count() == 1
    box = answers.bounding_box()
    assert box["y"] + box["height"] <= DESK[1]


@pytest.mark.parametrize("name", PAGES)
def test_tables_have_captions_and_heads_with_a_scope(name, visit):
    page = visit(name).page
    assert page.evaluate(UNSCOPED_HEADS) == []
    assert page.evaluate(UNTITLED) == 0


def test_a_comparison_prints_on_four_sheets(visit):
    printed = visit("compare ring_sp").page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) <= 4
