"""docs/explain.md: its programs run, and are found to have what the page says of them."""

import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explain.md"
BLOCKS = re.findall(
    r"```python\n([^`]*)```\n\n```text\n([^`]*)```", PAGE.read_text(encoding="utf-8")
)
KIND = re.compile(r"^    ([a-z0-9 ]+): ", re.MULTILINE)


def test_there_are_ten_questions():
    headings = re.findall(r"^## (\d+)\. ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [str(n) for n in range(1, 11)]
    assert all(KIND.findall(said) for _, said in BLOCKS)
    assert len(BLOCKS) == 11


@pytest.mark.full
def test_each_program_has_what_is_said_of_it(aot):
    (header,) = re.findall(r"```python\n(import jax[^`]*)```", PAGE.read_text(encoding="utf-8"))
    names: dict = {}
    exec(header, names)
    for code, said in BLOCKS:
        with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
            exec(compile(code, "train.py", "exec"), names)
        found = {f.kind for f in names["why"].findings}
        found |= {"needed"} if names["why"].needed else set()
        assert set(KIND.findall(said)) <= found, code


@pytest.mark.parametrize(("code", "said"), BLOCKS)
def test_lines_that_are_named_are_those_of_the_program(code, said):
    lines = code.splitlines()
    for number, text in re.findall(r"^train\.py:(\d+)  (.*)$", said, re.MULTILINE):
        assert lines[int(number) - 1].strip() == text
