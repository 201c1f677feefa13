"""The plan for a GPU, rehearsed on a CPU: its order, its deadline, and who reads its record."""

import dataclasses
import json
import sys

import jax
import pytest

from parallax.kernels import dispatch, validation
from parallax.kernels.decode_attention import cases as decode
from parallax.kernels.operations import BASELINES, OPERATIONS
from parallax.kernels.ring_attention import backward_cases as backward
from parallax.kernels.ring_attention import cases as forward
from parallax.kernels.validation import read_lines, runs_of
from parallax.studies.kernels import page as kernels_page
from parallax.studies.kernels.gpu_minutes import work
from parallax.studies.kernels.gpu_minutes.bench import draw, rehearsal
from parallax.studies.kernels.gpu_minutes.group import run_group
from parallax.studies.kernels.gpu_minutes.plan import FIRST, PARTS, Group, Item, Part
from parallax.studies.kernels.gpu_minutes.running import GROUP, run_part, start_group

RECORD = "part-1.jsonl"


class Clock:
    """A clock that moves by what is asked of it."""

    now = 0.0

    def __call__(self):
        return self.now


def silent(line):
    del line


def items_of(part):
    return [(group.name, item.name) for group in part.groups for item in group.items]


def ended(record):
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return {(x["group"], x["item"]): x["status"] for x in lines if x["kind"] == "item"}


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The record of both parts, all groups in this process, with a program compiled once."""
    record = tmp_path_factory.mktemp("record") / RECORD
    bench, programs = rehearsal(), {}
    compile_case = work.compile_case

    def compiled_once(operation, case, implementation, arrays):
        if case not in programs:
            programs[case] = compile_case(operation, case, implementation, arrays)
        return programs[case]

    def start(group, limit_s):
        run_group(group, record, limit_s, bench, clock=lambda: 0.0)
        return 0

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(work, "compile_case", compiled_once)
        for part in PARTS.values():
            run_part(part, record, start, clock=Clock(), on_progress=silent)
    return record


def test_every_item_is_done_in_order(rehearsed):
    expected = [item for part in PARTS.values() for item in items_of(part)]
    assert list(ended(rehearsed)) == expected
    assert set(ended(rehearsed).values()) == {"done"}


def test_the_order_is_the_most_needed_first():
    work_of = [item.work for group in FIRST.groups for item in group.items]
    assert work_of == sorted(work_of, key=["smoke", "ceilings", "check", "time"].index)
    checked = [item for group in FIRST.groups for item in group.items if item.work == "check"]
    head_dims = [i.case.head_dim for i in checked if i.operation == "ring_attention"]
    assert list(dict.fromkeys(head_dims)) == [128, 512, 256, 64]
    assert list(dict.fromkeys(item.operation for item in checked)) == [
        "ring_attention", "decode_attention", "ring_attention_backward", "cache_tiled_mlp",
    ]  # fmt: skip
    alone = next(group for group in FIRST.groups if group.items[0] in checked[-2:])
    assert {item.operation for item in alone.items} == {"cache_tiled_mlp"}


@pytest.mark.parametrize("part", PARTS.values())
def test_the_limits_of_groups_fit_the_deadline(part):
    """With what it takes to kill one of them; and an item fits its group."""
    assert sum(group.limit_s for group in part.groups) + 5 <= part.deadline_s
    assert sum(part.deadline_s for part in PARTS.values()) <= 640
    for group in part.groups:
        assert all(item.seconds < group.limit_s / 2 for item in group.items)
    assert len(set(items_of(part))) == len(items_of(part))


def test_it_stops_at_its_deadline(tmp_path):
    record, clock, begun = tmp_path / RECORD, Clock(), []

    def start(group, limit_s):
        begun.append((group.name, limit_s))
        clock.now += 2 * limit_s  # far too slow
        return 0

    run_part(FIRST, record, start, clock=clock, on_progress=silent)
    names = [group.name for group in FIRST.groups]
    assert [name for name, _ in begun] == names[: len(begun)]
    assert 2 < len(begun) < len(names)
    assert all(FIRST.deadline_s - 5 >= limit for _, limit in begun)
    statuses = ended(record)
    assert list(statuses) == items_of(FIRST)
    assert statuses[items_of(FIRST)[-1]] == "not reached"


def test_a_group_begins_nothing_that_it_has_no_time_for(tmp_path):
    clock = Clock()
    items = (Item("ceilings", seconds=4), Item("smoke", seconds=50))
    run_group(Group("g", 20, items), tmp_path / RECORD, 20, rehearsal(), clock)
    assert ended(tmp_path / RECORD) == {("g", "ceilings"): "done", ("g", "smoke"): "not reached"}


def test_an_item_that_fails_leaves_the_next_one(tmp_path):
    items = (Item("check", "no such operation", OPERATIONS["ring_attention"].SMALL[0]),
             Item("ceilings"))  # fmt: skip
    run_group(Group("g", 20, items), tmp_path / RECORD, 20, rehearsal(), Clock())
    assert list(ended(tmp_path / RECORD).values()) == ["failed", "done"]


def test_a_group_that_hangs_is_killed_and_named(tmp_path):
    """Real processes: the first ends one item and hangs, deaf to being asked to end."""
    script = tmp_path / "group.py"
    script.write_text(
        "import json, signal, sys, time\n"
        "name, record = sys.argv[1], sys.argv[2].removeprefix('--record=')\n"
        "line = {'kind': 'item', 'group': name, 'item': 'smoke', 'status': 'done'}\n"
        "open(record, 'a').write(json.dumps(line) + '\\n')\n"
        "if name == 'hangs':\n"
        "    time.sleep(600)\n"
    )
    case = OPERATIONS["ring_attention"].SMALL[0]
    items = (Item("smoke"), Item("ceilings"), Item("check", "ring_attention", case))
    part = Part(300, (Group("hangs", 12, items), Group("goes on", 12, items[:1])))
    record = tmp_path / RECORD
    start = start_group((sys.executable, str(script)), record)
    said = []
    run_part(
        part, record, lambda group, _: start(group, 1.0), clock=Clock(), on_progress=said.append
    )
    assert list(ended(record).items()) == [
        (("hangs", "smoke"), "done"),
        (("hangs", "ceilings"), "hung"),
        (("hangs", items[2].name), "not reached"),
        (("goes on", "smoke"), "done"),
    ]
    assert said[0].startswith("hangs: exit 124")
    assert len(list(tmp_path.iterdir())) - 1 <= 5  # files that come back


def test_a_real_process_does_a_group(tmp_path):
    record = tmp_path / RECORD
    assert start_group(GROUP, record, rehearse=True)(FIRST.groups[0], 120) == 0
    lines = read_lines(tmp_path)
    assert [line["kind"] for line in lines] == ["device", "item", "ceilings", "item"]
    assert lines[0]["jax"] == jax.__version__


def test_dispatch_reads_the_record(rehearsed, monkeypatch):
    """Kernels that were right and faster than XLA are taken: here by a made-up clock."""
    # A CPU's programs have no assembler, and a causal kernel of an unknown one counts for nothing.
    runs = [
        dataclasses.replace(run, assembler="13.0.88")
        for run in runs_of(read_lines(rehearsed.parent))
    ]
    monkeypatch.setattr(validation, "recorded", lambda: runs)
    monkeypatch.setattr(validation, "_assembler_miscompiles", lambda: False)
    able = {"mosaic": None, "xla": None}
    assert {run.gpu for run in runs} == {dispatch.device_kind()}
    taken = {
        (run.operation, run.head_dim, run.is_causal)
        for run in runs
        if dispatch.choose(run.operation, None, able, kind=run.kind) == "mosaic"
    }
    attention = {("attention_step", d, c) for d in (128, 256, 512) for c in (True, False)}
    backward = {("attention_step_backward", d, True) for d in (128, 256, 512)}
    decode = {("decode_attention", d, False) for d in (64, 128, 256, 512)}
    assert taken == attention | backward | decode | {("cache_tiled_mlp", None, False)}


def test_the_page_shows_the_record(rehearsed):
    compiled = kernels_page.compiled_record()
    empty, shown = (
        kernels_page.page(lines, compiled) for lines in ([], read_lines(rehearsed.parent))
    )
    planned = {
        item.name.split(" ", 1)[1]
        for part in PARTS.values()
        for group in part.groups
        for item in group.items
        if item.case is not None
    }
    assert empty.count(kernels_page.NOT_RUN) == len(planned)
    assert shown.count(f"| plain | {kernels_page.NOT_RUN} |") == 0
    assert "| timed only | 1000 | 1000 | 2000 | 1000 | cpu, jax " in shown
    assert "Ceilings: " in shown
    assert (
        kernels_page.ROOT / "docs" / "generated" / "kernels.md"
    ).read_text() == kernels_page.page(read_lines(), compiled)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_record_is_asked_for_what_is_recorded(name, monkeypatch):
    """The kind that an operation hands to `dispatch` is the kind that its runs are recorded as."""
    asked = []
    choose = dispatch.choose

    def noted(operation, implementation, reasons, *, kind=None, kernel=None):
        asked.append((operation, kind))
        return choose(operation, implementation, reasons, kind=kind, kernel=kernel)

    monkeypatch.setattr(dispatch, "choose", noted)
    operation = OPERATIONS[name]
    for case in operation.SMALL:
        if getattr(case, "tile", None) is None:
            asked.clear()
            jax.eval_shape(operation.program(case, "xla"), *operation.inputs(case, 0))
            assert asked[-1] == (work.DISPATCHED.get(name, name), case.kind)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_drawn_on_the_device_has_the_shapes_of_the_baselines(name):
    attention = forward.Case(64, "bfloat16", 24, 24, heads=3, kv_heads=3)
    case = {
        "ring_attention": attention,
        "ring_attention_backward": backward.Case(*attention),
        "decode_attention": decode.Case(64, "bfloat16", 40, heads=4, kv_heads=2, batch=3),
    }.get(name, OPERATIONS[name].SMALL[0])
    expected = BASELINES[name].draw(case, 0)
    found = draw(name, case)
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in expected]
