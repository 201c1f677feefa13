"""The README and the tutorials run as they stand, in a fresh copy of what they name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs/python.md", *sorted((ROOT / "docs/tutorials").iterdir())]
BLOCK = re.compile(
    r"(?:^<!-- (not run: [^\n]+|ci:test) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page):
    """(why it is not run or None, language, code) of each block of a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(why or None, language, code) for why, language, code in found]


def to_run(page, language):
    return [code for why, of, code in blocks(page) if of == language and why is None]


def missing(shown, printed):
    """Lines of an output that are not in what was printed, however both are spaced and wrapped."""
    whole = " ".join(printed.split())
    return [line for line in shown.splitlines() if " ".join(line.split()) not in whole]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_block_is_code_or_what_code_printed(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(page))
    assert {language for _, language, _ in blocks(page)} <= {"sh", "python", "text"}
    for _, language, code in blocks(page):
        if language == "python":
            compile(code, page.name, "exec")
        if language == "sh":
            subprocess.run(["bash", "-n"], input=code, text=True, check=True)


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_runs_and_prints_what_it_shows(page, aot, tmp_path):
    for part in ("docs", "examples", "README.md"):
        (tmp_path / part).symlink_to(ROOT / part)
    unset = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    script = tmp_path / "page.py"  # in a file, so that explanations have its lines
    script.write_text("\n".join(to_run(page, "python")), encoding="utf-8")
    printed = ""
    for code in (*to_run(page, "sh"), f"{sys.executable} {script.name}"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail"], input=code, cwd=tmp_path, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"
        printed += done.stdout + done.stderr
    for shown in to_run(page, "text"):
        assert not missing(shown, printed)


def test_a_line_that_was_not_printed_is_missing():
    printed = "  tokens/s    638k\nTake fsdp: it\nfits.\n"
    assert missing("tokens/s  638k\n\nTake fsdp: it fits.\n", printed) == []
    assert missing("tokens/s  639k\n", printed) == ["tokens/s  639k"]
