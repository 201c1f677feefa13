"""docs/generated/communication.md has every strategy of every paper, with today's closed forms."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def generator():
    spec = importlib.util.spec_from_file_location(
        "communication_page", ROOT / "benchmarks" / "communication.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = generator()
PAGE = (ROOT / "docs" / "generated" / "communication.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", list(MADE.programs()), ids=lambda p: p[0])
def test_the_page_has_todays_closed_forms(program):
    assert MADE.section(*program) in PAGE


def test_every_compiled_program_equals_its_closed_form_on_the_page():
    assert PAGE.count("\nEqual to the closed form") == len(list(MADE.programs()))
    assert "NOT equal" not in PAGE
