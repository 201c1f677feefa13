"""Every command line in the documentation is one that the command takes."""

import re
import shlex
from pathlib import Path

import pytest

from parallax.experiments.__main__ import EXPERIMENTS
from parallax.experiments.compare import _request
from parallax.experiments.flags import read_flags
from parallax.experiments.launch import command_module

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").glob("*.py")),
]  # fmt: skip
_COMMAND = re.compile(
    rf"^[ $]*(?:srun (?:--\S+ )*)?parallax ({'|'.join(EXPERIMENTS)}) +(-[^`#\n]*)", re.MULTILINE
)


def commands(page):
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    return [(name, rest) for name, rest in _COMMAND.findall(text) if "..." not in rest]


FOUND = [(page.name, *command) for page in PAGES for command in commands(page)]


def test_there_are_many():
    assert len(FOUND) > 60


@pytest.mark.parametrize(("page", "name", "rest"), FOUND)
def test_it_is_taken(page, name, rest):
    line = re.split(r"\s{3,}|\s+&", rest)[0]
    found = read_flags(command_module(name).Flags, ["parallax", *shlex.split(line)])
    if name == "compare" and found.from_report is None:
        assert _request(found)
