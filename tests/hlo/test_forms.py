"""Every form of the same text, as versions, dumps and people write it, is read the same."""

import re
from pathlib import Path

import pytest

from parallax.commands.inspect import inspect_text
from parallax.hlo import HloError, parse_module
from tests.hlo.test_fuzz import TEXTS, account, read

_DEFINITION = re.compile(
    r"^  (?:ROOT )?%(\S+) = (\(.*?\)|\S+) (?=[a-z][a-z0-9\-]*\()", re.MULTILINE
)
_NO_PERCENT = re.compile(r'%(?=[A-Za-z_])(?=(?:[^"\n]*"[^"\n]*")*[^"\n]*$)', re.MULTILINE)


def _typed(text):
    """Write an operand's shape before it, as JAX 0.4 does."""

    def of_computation(match):
        shapes = dict(_DEFINITION.findall(match[0]))

        def operands(line):
            head, opcode, inside, rest = line.groups()
            typed = re.sub(r"%([^\s,(){}]+)", lambda m: f"{shapes[m[1]]} %{m[1]}", inside)
            return f"{head}{opcode}({typed}){rest}"

        line = re.compile(r"^(  (?:ROOT )?%\S+ = .*?)( [a-z][a-z0-9\-]*)\(([^()]*)\)(.*)$", re.M)
        return line.sub(operands, match[0])

    return re.sub(r"^(?:ENTRY )?%.*?^}", of_computation, text, flags=re.MULTILINE | re.DOTALL)


def _elements_in_place(text):
    """Drop each get-tuple-element and name the element where it is used, as dumps do."""

    def of_computation(match):
        body = match[0]
        pattern = re.compile(
            r"^  %(\S+) = \S+ get-tuple-element\(%([^\s()]+)\), index=(\d+).*\n", re.MULTILINE
        )
        for name, source, index in pattern.findall(body):
            whole = re.escape(f"%{name}")
            if not re.search(rf"ROOT {whole} ", body):
                body = re.sub(rf"^  {whole} = .*\n", "", body, flags=re.MULTILINE)
                body = re.sub(rf"{whole}(?=[,)#])", f"%{source}#{index}", body)
        return body

    return re.sub(r"^(?:ENTRY )?%.*?^}", of_computation, text, flags=re.MULTILINE | re.DOTALL)


FORMS = {
    "CRLF": lambda t: t.replace("\n", "\r\n"),
    "a byte order mark": lambda t: "\ufeff" + t,
    "indented": lambda t: "".join(f"    {line}\n" for line in t.split("\n")),
    "indented by tabs": lambda t: "".join(f"\t{line}\n" for line in t.split("\n")),
    "no indentation": lambda t: re.sub(r"^ +", "", t, flags=re.MULTILINE),
    "trailing spaces": lambda t: t.replace("\n", "  \n"),
    "in a fence": lambda t: f"```\n{t}```\n",
    "in a fence with words": lambda t: f"# My program\n\nIt prints:\n\n~~~hlo\n{t}~~~\n\nWhy?\n",
    "a fence that does not close": lambda t: f"```text\n{t}",
    "lines of comments": lambda t: "// a dump\n" + t.replace("\n\n", "\n// more (\n\n"),
    "comments behind": lambda t: t.replace(", metadata=", " /* a, { */, metadata="),
    "a text that ends in a backslash": lambda t: t.replace(
        ", metadata=", ', note="({,\\\\\\"\\\\", metadata='),
    "comments over lines": lambda t: "/* by\n hand {\n*/\n" + t,
    "blank lines around": lambda t: f"\n\n{t}\n\n",
    "names without %": lambda t: _NO_PERCENT.sub("", t),
    "typed operands": _typed,
    "typed operands without %": lambda t: _NO_PERCENT.sub("", _typed(t)),
    "elements in place": _elements_in_place,
    "short headers": lambda t: re.sub(r"^((?:ENTRY )?%\S+) \(.*\) -> .* \{$", r"\1 {", t,
                                      flags=re.MULTILINE),
    "no entry layout": lambda t: re.sub(r", entry_computation_layout=.*?(?=, [a-z_]+=)", "", t),
    "threads": lambda t: t.replace("\n}\n", '\n}, execution_thread="main"\n', 1),
    "tables": lambda t: t.replace("\n", '\n\nFileNames\n1 "a.py"\n\nStackFrames\n'
                                  "1 {file_location_id=1 parent_frame_id=1}\n\n", 1),
    "older metadata": lambda t: t.replace(
        "metadata={", 'metadata={op_type="x" source_file="/a//b/*c.py" source_line=3 '),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return {name: account(read(text)) for name, text in TEXTS.items()}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_the_same(form, name, whole):
    text = FORMS[form](TEXTS[name])
    assert text != TEXTS[name]
    found = read(text)
    assert account(found) == whole[name]
    assert found.timed is not None
    assert found.cost.seconds == pytest.approx(read(TEXTS[name]).cost.seconds, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_an_error_names_the_line_of_the_text_as_given(form):
    text = FORMS[form](TEXTS["tensor"])
    lines = text.split("\n")
    at = next(n for n, line in enumerate(lines) if "cublas" in line)
    lines[at] = lines[at].replace("custom-call(", "custom-call((", 1)
    with pytest.raises(HloError, match=rf"^line {at + 1}: "):
        parse_module("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: .*The text is empty"),
        ("\n\n  \n", "The text is empty"),
        ("module @jit_f attributes {mhlo.num_partitions = 8 : i32} {\n}", "StableHLO"),
        ("{ lambda ; a:f32[8]. let b = neg a in (b,) }", "a jaxpr"),
        ("BufferAssignment:\nallocation 0", "another file of a dump"),
        ("BEFORE " + TEXTS["tensor"], "line 1: expected 'HloModule"),
        (TEXTS["tensor"] + TEXTS["tensor"], r"line \d+: a second HloModule"),
        (TEXTS["tensor"].replace("(%p2, %bitcast.2)", "(%p2#0, %bitcast.2)"), "not an element"),
        (TEXTS["tensor"].replace("(%p2, %bitcast.2)", "(f16[1]{0} %p2, %bitcast.2)"),
         "is not of shape"),
        (TEXTS["tensor"] + "/* and", "a comment does not close"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(text, says):
    with pytest.raises(HloError, match=says) as error:
        inspect_text(text)
    assert "\n" not in str(error.value)


def test_the_dump_of_the_pinned_jax_is_read():
    """The text that XLA dumps differs from as_text(): elements of tuples are named in place."""
    text = (Path(__file__).parent / "data/dump.hlo").read_text(encoding="utf-8")
    assert "#0" in text
    found = inspect_text(text)
    assert [(c.kind, c.wire_bytes) for c in found.ledger] == [
        ("reduce-scatter", 4096 * 4096 * 2 * 7 / 8), ("all-reduce", 2 * 4096 * 4096 * 2 * 7 / 8),
    ]  # fmt: skip
    assert found.gemm_flops == 2 * 2 * 4096 * 4096 * 512
    assert found.timed is not None
