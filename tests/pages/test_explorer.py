"""The regime explorer in a browser: every control moves it, and it says what the table says."""

from dataclasses import asdict

import pytest

from parallax.studies.regimes.explored import Place, look_up
from parallax.studies.regimes.explorer import cases_at, hardware, places_off
from tests.pages.written import CORNER, corner_cases, explored

pytestmark = pytest.mark.full

CONTROLS = ("length", "batch", "width", "bandwidth", "devices", "heads", "experts")
MOST_MS = 100


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("explorer") / "explorer.html"
    file.write_text(explored(), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def page(browser, address):
    made = browser.new_page()
    made.errors = []
    made.on("pageerror", lambda error: made.errors.append(str(error)))
    made.goto(address)
    yield made
    assert made.errors == []
    made.close()


def move(page, name):
    """Changes one control by the keyboard, or a choice to another value."""
    control = page.locator(f"#{name}")
    if control.evaluate("e => e.tagName") == "SELECT":
        options = control.locator("option").count()
        control.select_option(index=0 if control.evaluate("e => e.selectedIndex") else options - 1)
    else:
        control.press("Home")
        control.press("ArrowRight")


def test_each_control_is_labelled_and_moves_the_answer(page):
    said = set()
    for name in CONTROLS:
        assert page.locator(f"label[for={name}]").count() == 1
        before = page.url
        move(page, name)
        assert float(page.locator("#took").inner_text()) <= MOST_MS
        if page.locator(f"#{name} option").count() != 1:
            assert page.url != before, name
        said.add(page.locator("main").inner_text())
    assert len(said) >= len(CONTROLS) - 1  # of heads the corner has one value


def test_the_address_holds_the_choices(page, browser):
    for name in ("length", "experts"):
        move(page, name)
    again = browser.new_page()
    again.goto(page.url)
    for name in CONTROLS:
        assert again.input_value(f"#{name}") == page.input_value(f"#{name}")
    assert again.inner_text("#answer") == page.inner_text("#answer")
    page.evaluate("() => { location.hash = '#length=2048&batch=1&experts=nonsense'; }")
    page.wait_for_function("() => document.getElementById('batch').value === '0'")
    assert page.inner_text("#length-said") == "2,048 tokens"


def test_the_page_computes_what_the_table_says(page):
    for place in [*places_off(CORNER, 8, seed=3), Place(4096, 64, 6144, 25.0, 16, 32, 16)]:
        usable = hardware(place.devices, place.bandwidth).usable_bytes
        shown = {f["one"]["name"]: f for f in page.evaluate("p => explore(p)", asdict(place))}
        for case in cases_at(corner_cases(), place):
            mine, found = look_up(CORNER, case, place, usable), shown[case.strategy]
            assert found["seconds"] == pytest.approx(mine.seconds, rel=2e-3)
            assert found["held"] == pytest.approx(mine.held_bytes, rel=2e-3)
            shares = [x / found["seconds"] for x in found["parts"]]
            assert shares == pytest.approx(mine.shares, abs=0.01)
        order = [f["seconds"] for f in shown.values() if f.get("fits")]
        assert order == sorted(order)
