"""10,000 damaged or hostile module texts are refused, or counted the same as the original."""

import math
import random
import re
import sys
from pathlib import Path

import pytest

from parallax.commands.inspect import inspect_text
from parallax.hlo import HloError, parse_module
from parallax.hlo.limits import MAX_DEPTH, MAX_DEVICES, MAX_LINE
from tests.hlo.mutations import MUTATIONS
from tests.selection import in_full

DATA = Path(__file__).parent / "data"
# Real programs (made by data/make.py) and how often each is damaged: 10,000 times in all.
TIMES = {"tensor": 4015, "experts": 4015, "decode": 1980}
TEXTS = {name: (DATA / f"{name}.hlo").read_text(encoding="utf-8") for name in TIMES}
# What a ledger follows from and nothing else in the text repeats: here a changed digit is a
# changed program. Everything else that counts stands twice, and both must agree.
TOLD = re.compile(
    r"replica_groups=[^ ]* \{[^}]*\}|replica_groups=[^ ]*|source_target_pairs=\{.*?\}\}|"
    r'"known_trip_count":\{"n":"\d+"\}|num_partitions=\d+'
)


def read(text):
    return inspect_text(text, cluster="h100_2x8", trips={"tiles": 3.0})


def account(found):
    """Every collective's bytes and count, and the FLOPs."""
    rows = sorted(
        (c.kind, c.axes or (), c.group_size, c.payload_bytes, c.wire_bytes, c.count, c.dtype)
        for c in found.ledger
    )
    return rows, found.gemm_flops


def figures(found):
    if found.timed is not None:  # a text without its is_scheduled=true has no time
        cost = found.cost
        yield from (cost.seconds, cost.communication_s, cost.flops, cost.memory_bytes)
        yield from (cost.link_bytes, cost.network_s, *cost.terms.values())
    yield found.gemm_flops
    for c in found.ledger:
        yield from (c.payload_bytes, c.wire_bytes, c.count)
    for _, count, seconds in found.kernels():
        yield from (count, seconds)


@pytest.fixture(scope="module")
def whole():
    return {name: read(text) for name, text in TEXTS.items()}


def test_the_texts_hold_what_the_tests_are_about(whole):
    kinds = {c.kind for found in whole.values() for c in found.ledger}
    assert len(kinds) == 5
    for name, flops in {
        # up and down of two layers: 128 rows by 128 by 32 a device
        "tensor": 2 * 2 * (2 * 128 * 128 * 32),
        # three tiles of 8 rows, and the branch's 128 rows
        "experts": 2 * (3 * 8 + 128) * 64 * 64,
    }.items():
        assert whole[name].gemm_flops == flops
    assert sum(TIMES.values()) >= 10_000
    assert all(n % len(MUTATIONS) == 0 for n in TIMES.values())
    assert not any(
        "/" in line for text in TEXTS.values() for line in re.findall(r'"\S*\.py"', text)
    )


@pytest.mark.slow
@in_full(TEXTS, "tensor")
def test_a_damaged_text_is_refused_or_counted_the_same(name, whole):
    """Each mutation: HloError (or ValueError) in words; or finite figures from 0 on, with the
    original's account. Another account needs one of two excuses: the damage is inside what TOLD
    matches, or the report names a custom call or a loop whose cost or trip count it lacks."""
    text, right = TEXTS[name], account(whole[name])
    refused, lengths = 0, set()
    for kind, mutate in MUTATIONS.items():
        for number in range(TIMES[name] // len(MUTATIONS)):
            damaged = mutate(text, random.Random(f"{name} {kind} {number}"))
            try:
                found = read(damaged)
            except ValueError as error:
                refused += 1
                lengths.add(len(str(error)))
                continue
            where = f"{kind} {number}"
            assert all(0 <= figure < math.inf for figure in figures(found)), where
            if account(found) != right:
                told = TOLD.sub("", damaged) == TOLD.sub("", text)
                assert told or set(found.notes) - set(whole[name].notes), where
    assert 0 < min(lengths) <= max(lengths) < 1000
    assert refused > 0.5 * TIMES[name]  # mutations do bite


def _lines(name):
    return TEXTS[name].rstrip("\n").split("\n")


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_cut_off_at_any_line_is_refused(name):
    lines = _lines(name)
    for end in range(len(lines)):
        with pytest.raises(HloError):
            parse_module("\n".join(lines[:end]))


@pytest.mark.parametrize("name", TEXTS)
def test_a_line_twice_is_refused(name):
    lines = _lines(name)
    for at, line in enumerate(lines):
        if line:
            with pytest.raises(HloError):
                parse_module("\n".join([*lines[: at + 1], line, *lines[at + 1 :]]))


@pytest.mark.parametrize("name", TEXTS)
def test_a_line_left_out_is_refused_unless_nothing_uses_it(name, whole):
    """What nobody uses takes its own cost with it and no more: here constants and nothing else."""
    lines = _lines(name)
    for at, line in enumerate(lines):
        if not line:
            continue
        less = "\n".join(lines[:at] + lines[at + 1 :])
        made = re.match(r"\s+%(\S+) = ", line)
        used = made is None or re.search(rf"%{re.escape(made[1])}[,)]", less)
        if used or " parameter(" in line:
            with pytest.raises(HloError):
                read(less)
        else:
            assert account(read(less)) == account(whole[name]), line


# --- hostile texts, by hand ---

P8 = "f32[8,8]{1,0}"
DOT = f"{P8} dot(%p, %p), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"


def computation(name, *lines, result="f32[8,8]"):
    body = "".join(f"  {line}\n" for line in lines)
    return f"%{name} (p: f32[8,8]) -> {result} {{\n  %p = {P8} parameter(0)\n{body}}}\n"


def module(*lines, before="", head="num_partitions=1"):
    entry = computation("main", *lines)
    return f"HloModule m, is_scheduled=true, {head}\n\n{before}ENTRY {entry}"


def nested(levels, calls, how):
    """A product below `levels` computations, each of which calls the next so many times."""
    texts = [computation("c0", f"ROOT %d = {DOT}")]
    for i in range(1, levels):
        lines = [
            f"{'ROOT ' if n == calls - 1 else ''}%a{n} = {P8} {how(f'c{i - 1}')}"
            for n in range(calls)
        ]
        texts.append(computation(f"c{i}", *lines))
    return module(f"ROOT %r = {P8} {how(f'c{levels - 1}')}", before="".join(texts))


def call(name):
    return f"call(%p), to_apply=%{name}"


def fusion(name):
    return f"fusion(%p), kind=kLoop, calls=%{name}"


def loop(count):
    before = computation("b", f"ROOT %d = {DOT}")
    before += computation("t", "ROOT %c = pred[] constant(true)", result="pred[]")
    config = f'{{"known_trip_count":{{"n":"{count}"}}}}'
    step = f"ROOT %r = {P8} while(%p), condition=%t, body=%b, backend_config={config}"
    return module(step, before=before)


def loops(depth, count):
    """Loops around loops, each so many times."""
    config = f'{{"known_trip_count":{{"n":"{count}"}}}}'
    texts = [computation("t", "ROOT %c = pred[] constant(true)", result="pred[]")]
    texts.append(computation("c0", f"ROOT %d = {DOT}"))
    steps = [
        f"ROOT %w = {P8} while(%p), condition=%t, body=%c{i}, backend_config={config}"
        for i in range(depth)
    ]
    texts += [computation(f"c{i + 1}", step) for i, step in enumerate(steps[:-1])]
    return module(steps[-1], before="".join(texts))


def gather(groups, devices=16):
    line = (
        f"ROOT %r = {P8} all-gather(%p), channel_id=1, replica_groups={groups}, "
        "use_global_device_ids=true, dimensions={0}"
    )
    return module(line, head=f"num_partitions={devices}")


def library(config):
    target = 'custom_call_target="__cublas$gemm"'
    return module(f"ROOT %r = {P8} custom-call(%p, %p), {target}, backend_config={config}")


def kernel(attributes, target="mine"):
    return module(f'ROOT %r = {P8} custom-call(%p), custom_call_target="{target}", {attributes}')


NINES = "9" * 30
HOSTILE = {
    "10,000 nested calls": (lambda: nested(10_000, 1, call), f"expected {MAX_DEPTH} at most"),
    "10,000 nested fusions": (lambda: nested(10_000, 1, fusion), f"expected {MAX_DEPTH} at most"),
    "2^60 calls": (lambda: nested(60, 2, call), "lead through over"),
    "2^60 fusions": (lambda: nested(60, 2, fusion), "lead through over"),
    "a trip count of 10^30": (lambda: loop(10**30), "trip count"),
    "a trip count of 5,000 digits": (lambda: loop("9" * 5000), "trip count"),
    "a trip count that is none": (lambda: loop("-3"), "trip count"),
    "five loops of 10^18": (lambda: loops(5, 10**18), "loops are too long|over .* times in all"),
    "a line of 100 MB": (
        lambda: module(f'ROOT %r = {P8} add(%p, %p), metadata={{op_name="{"x" * 10**8}"}}'),
        f"line 5: 1000000.. characters, expected {MAX_LINE}",
    ),
    "brackets that never close": (
        lambda: module("ROOT %r = " + "(" * 10**6), "line 5: a bracket or quote does not close"),
    "deep tuples": (
        lambda: module(f"ROOT %r = {'(' * 5000}f32[8]{')' * 5000} tuple(%p)"),
        "tuples in each other"),
    "a dim of 10^30": (lambda: module(f"ROOT %r = f32[{NINES}] add(%p, %p)"), "64-bit"),
    "dims that overflow": (
        lambda: module(f"ROOT %r = f32[{','.join(['99999999'] * 40)}] add(%p, %p)"), "elements"),
    "200,000 dims": (
        lambda: module(f"ROOT %r = f32[{','.join(['9'] * 200_000)}] add(%p, %p)"), "dims"),
    "a parameter of 5,000 digits": (
        lambda: module(f"ROOT %r = {P8} parameter({'9' * 5000})"), r"parameter\(N\)"),
    "10^9 partitions": (lambda: gather("{}", 10**9), f"1 to {MAX_DEVICES}"),
    "no partitions": (lambda: gather("{}", 0), f"1 to {MAX_DEVICES}"),
    "10^9 in groups": (lambda: gather("[1,1000000000]<=[1000000000]"), "replica_groups"),
    "10^8 in groups": (lambda: gather("[1,100000000]<=[100000000]"), "expected 16 devices"),
    "10^8 in a mesh": (lambda: gather("mesh['a'=100000000] {'a'}"), "expected 16 devices"),
    "a mesh of 70 axes": (
        lambda: gather("mesh[" + ",".join(f"'a{i}'=1" for i in range(70)) + "] {'a1'}"),
        "expected 16 devices|expected 1 back|mesh"),
    "groups in 100 dims": (
        lambda: gather("[1,16]<=[" + "1," * 100 + "16]"), "expected 16 devices"),
    "no groups": (lambda: gather("[0,16]<=[0]"), "expected 16 devices"),
    "groups of 5,000 digits": (lambda: gather(f"{{{{{'9' * 5000}}}}}"), "expected integers"),
    "half a million groups": (lambda: gather("{" + "{0}," * 500_000 + "}"), "not understood"),
    "pairs of 5,000 digits": (
        lambda: module(
            f"ROOT %r = {P8} collective-permute(%p), channel_id=1, "
            f"source_target_pairs={{{{0,{'9' * 5000}}}}}", head="num_partitions=16"),
        "source_target_pairs"),
    "an unknown opcode": (
        lambda: module(f"ROOT %r = {P8} frobnicate(%p)"), "the cost of frobnicate is not known"),
    "an unknown opcode that calls": (
        lambda: module(f"ROOT %r = {P8} frobnicate(%p), to_apply=%c",
                       before=computation("c", f"ROOT %d = {DOT}")), "not understood"),
    "contracted dims of 5,000 digits": (
        lambda: module(f"ROOT %r = {DOT.replace('{1}', '{' + '9' * 5000 + '}')}"), "dims"),
    "a dim contracted twice": (
        lambda: module(f"ROOT %r = {DOT.replace('{1}, r', '{1,1}, r')}"), "a dim twice"),
    "deep JSON": (
        lambda: library('{"gemm_backend_config":' + "[" * 10**5 + "]" * 10**5 + "}"),
        "no dot dimensions"),
    "infinity in JSON": (
        lambda: library('{"gemm_backend_config":{"dot_dimension_numbers":'
                        '{"lhs_contracting_dimensions":[Infinity]}}}'), "no dot dimensions"),
    "a dim below 0 in JSON": (
        lambda: library('{"gemm_backend_config":{"dot_dimension_numbers":'
                        '{"lhs_contracting_dimensions":[-1],"rhs_contracting_dimensions":[0],'
                        '"lhs_batch_dimensions":[]}}}'), "below 0"),
    "a declared cost without end": (
        lambda: kernel('frontend_attributes={cost_flops="1e999",cost_bytes="1"}'), "non-negative"),
    "a declared cost below 0": (
        lambda: kernel('frontend_attributes={cost_flops="-1",cost_bytes="1"}'), "non-negative"),
    "attention of no shape": (
        lambda: kernel('backend_config={"cudnn_fmha_backend_config":{"intermediate_tensor_shape":'
                       '{"dimensions":["-1","2","1","7"]}}}', "__cudnn$fmha"), "does not fit"),
    "a header that says otherwise": (
        lambda: module(f"ROOT %r = {DOT}").replace("-> f32[8,8]", "-> f32[8,9]"), "its header"),
    "a parameter that the header does not have": (
        lambda: module(f"ROOT %r = {DOT}").replace("(p: f32[8,8])", "()"), "its header"),
    "a done of nothing": (lambda: module(f"ROOT %r = {P8} dot-done(%p)"), "do not agree"),
    "an element of no tuple": (
        lambda: module(f"ROOT %r = {P8} get-tuple-element(%p), index=0"), "do not agree"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_text_is_refused_in_words(what):
    make, why = HOSTILE[what]
    with pytest.raises(HloError, match=why) as error:
        inspect_text(make())
    assert len(str(error.value)) < 1000


def test_what_the_hostile_texts_are_made_from_is_understood():
    """So that they are refused for what they are."""
    flops = 2 * 8**3
    assert inspect_text(nested(MAX_DEPTH - 1, 1, call)).gemm_flops == flops
    assert inspect_text(nested(10, 2, fusion)).gemm_flops == 2**9 * flops
    assert inspect_text(loop(10**15)).gemm_flops == 10**15 * flops
    assert inspect_text(loops(3, 10)).gemm_flops == 1000 * flops
    assert inspect_text(kernel('frontend_attributes={cost_flops="1",cost_bytes="1"}')).cost.seconds
    assert inspect_text(module(f"ROOT %r = {DOT}")).gemm_flops == flops


def calls(function, *arguments):
    """Function calls that Python makes in it: what grows too fast is seen without a clock."""
    count = 0

    def one_more(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(one_more)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


def test_many_transfers_in_flight_do_not_hang():
    """The walk between each start and its done would grow as the square of their number."""
    start = f"(({P8}), {P8}) collective-permute-start(%p), channel_id=1, "
    start += "source_target_pairs={{0,1}}"

    def refused(n):
        lines = [f"%s{i} = {start}" for i in range(n)]
        lines += [f"%x{i} = {DOT}" for i in range(n)]
        lines += [f"%d{i} = {P8} collective-permute-done(%s{i})" for i in range(n)]
        text = module(*lines, f"ROOT %r = {P8} add(%d0, %d1)", head="num_partitions=16")
        with pytest.raises(HloError, match="in flight"):
            inspect_text(text)

    assert calls(refused, 3000) < 2.5 * calls(refused, 1500)


def test_long_chains_of_names_do_not_hang():
    def chain(n):
        lines = ["%b0 = f32[8,8]{1,0} bitcast(%p)"]
        lines += [f"%b{i} = {P8} bitcast(%b{i - 1})" for i in range(1, n)]
        lines += [f"%a{i} = {P8} add(%b{n - 1}, %b{n - 1})" for i in range(n)]
        found = inspect_text(module(*lines, f"ROOT %r = {P8} add(%a0, %a1)"))
        assert len(found.kernels()) == n + 1

    assert calls(chain, 2000) < 2.5 * calls(chain, 1000)
