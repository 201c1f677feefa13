"""Documentation names what is there: links, paths, modules, and the rooms in their order."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

import parallax as px

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "parallax"
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "kernels/record/README.md",
]  # fmt: skip
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def prose(page):
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    """Relative links of a page that lead nowhere."""
    found = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", prose(page))
    for path, anchor in found:
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{path}#{anchor}"


def is_there(path):
    """Whether the part of a path before any <name> exists, from the root or from the package."""
    known = path.split("<")[0]
    known = known if known == path else known.rpartition("/")[0]
    return any((base / known).exists() for base in (ROOT, PACKAGE))


def wrong_paths(page):
    """Paths between backticks that are not there. A Python file is always named with its folder."""
    for path in re.findall(r"`([\w.<>-]+(?:/[\w.<>-]*)*)`", prose(page)):
        first = path.split("/")[0]
        is_ours = path.endswith((".py", "/")) or (first not in ("..", path) and is_there(first))
        if is_ours and not is_there(path):
            yield path


def is_module(name):
    """Whether a dotted name is a module, or a word in the module that it starts with."""
    at, parts = PACKAGE, name.split(".")[1:]
    while parts and (at / parts[0]).is_dir():
        at /= parts.pop(0)
    if parts and (at / f"{parts[0]}.py").exists():
        at /= f"{parts.pop(0)}.py"
    text = (at if at.is_file() else at / "__init__.py").read_text("utf-8") if parts else ""
    return all(re.search(rf"\b{part}\b", text) for part in parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_is_there(page):
    assert not list(broken_links(page))
    assert not list(wrong_paths(page))
    modules = re.findall(r"(?<![\w/])parallax(?:\.\w+)+", page.read_text("utf-8"))
    assert not [name for name in modules if not is_module(name)]


def test_the_checks_see_what_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `word`\n[a](#one-word) [b](#two) [c](none.md) `rules.py` `estimate/` `spmd.py`\n"
        "`tests/none.py` `kernels/<op>/api.py` `none/<op>.py` `out/report.json`\n"
        "```\n`gspmd.py`\n```\n"
    )
    assert list(broken_links(page)) == ["#two", "none.md#"]
    assert list(wrong_paths(page)) == ["estimate/", "spmd.py", "tests/none.py", "none/<op>.py"]
    names = ("rules.Rules", "studies.kernels.page", "sharded_cache", "rules.Nothing")
    assert [is_module(f"parallax.{name}") for name in names] == [True, True, False, False]


def test_the_overview_has_every_room_in_the_order_of_imports():
    text = (ROOT / "docs" / "overview.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text.split("## Rooms")[1], re.MULTILINE)
    rooms = [room for row in rows for room in re.findall(r"`(\w+)(?:/|\.py)`", row)]
    rank = runpy.run_path(str(ROOT / "tests" / "test_layout.py"))["RANK"]
    assert set(rooms) == set(rank) - {"_links"}
    assert rooms == sorted(rooms, key=rank.__getitem__)


def test_the_overview_is_one_page():
    assert len((ROOT / "docs" / "overview.md").read_text(encoding="utf-8").split()) <= 700


def test_the_citation_is_of_this_package():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    cited = dict(line.split(": ", 1) for line in lines if re.match(r"[a-z-]+: ", line))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]
    assert cited["abstract"].strip('"') == project["description"]
    assert f'  - name: "{project["authors"][0]["name"]}"' in lines


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert re.findall(r"^::: parallax\.(\w+)$", text, re.MULTILINE) == px.__all__


def test_the_site_has_every_page():
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    listed = re.findall(
        r"^ +- ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page):
    """A | in a cell that is not escaped is one cell more."""
    cells: int | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert None in (cells, found) or found == cells, line
        cells = found
