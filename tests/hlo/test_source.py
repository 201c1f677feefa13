"""The source lines of instructions, from the tables of newer versions or metadata of older ones."""

import pytest

from parallax.hlo import parse_module
from parallax.hlo.source import Frame

MODULE = """\
HloModule m, is_scheduled=true

FileNames
1 "/home/me/train.py"
2 "a \\"quoted\\" name.py"

FunctionNames
1 "<module>"
2 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=40 end_line=40 column=0 end_column=9}
2 {file_name_id=2 function_name_id=2 line=7 end_line=8 column=4 end_column=20}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0), metadata={op_name="x"}
  %a = f32[8]{0} negate(%p), frontend_attributes={is_spmd_generated="true"}, \
metadata={op_name="jit(step)/neg" stack_frame_id=2}
  ROOT %b = f32[8]{0} negate(%a), \
metadata={op_type="neg" op_name="n" source_file="/old/train.py" source_line=12}
}
"""
OUTER, INNER = Frame("/home/me/train.py", 40, "<module>"), Frame('a "quoted" name.py', 7, "step")


@pytest.mark.parametrize(
    "text",
    [MODULE, MODULE.replace("parent_frame_id=1", "parent_frame_id=0").replace(
        "parent_frame_id=2", "parent_frame_id=1")],
)  # fmt: skip
def test_the_frames_of_every_form_of_metadata(text):
    module = parse_module(text)
    p, a, b = module.computation("main").instructions
    assert module.frames(a) == (INNER, OUTER)
    assert module.frames(b) == (Frame("/old/train.py", 12, ""),)
    assert module.frames(p) == ()
    assert [i.is_spmd_generated for i in (p, a, b)] == [False, True, False]


def test_names_need_not_be_ascii():
    text = MODULE.replace("/home/me/train.py", r"/home/jos\303\251/\346\225\260 1.py")
    text = text.replace('op_name="jit(step)/neg"', r'op_name="jit(\346\225\260)/p[\'a\']/neg"')
    a = parse_module(text).computation("main").instructions[1]
    assert parse_module(text).frames(a)[1].file == "/home/josé/数 1.py"
    assert a.op_name == "jit(数)/p['a']/neg"


@pytest.mark.parametrize(
    ("old", "new"),
    [("parent_frame_id=2", "parent_frame_id=3"), ("file_location_id=2", "file_location_id=9"),
     ("stack_frame_id=2", "stack_frame_id=77"), ("line=7", "line=x")],
)  # fmt: skip
def test_damaged_tables_name_no_wrong_line_and_do_not_hang(old, new):
    module = parse_module(MODULE.replace(old, new))
    frames = module.frames(module.computation("main").instructions[1])
    assert set(frames) <= {INNER, OUTER}
