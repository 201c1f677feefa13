"""Bytes to and from the host's memory are told apart, and cross PCIe at its rate."""

import pytest

from parallax.commands.inspect import inspect_text
from parallax.cost import rates_of

DEVICE, HOST = "bf16[8192,4096]{1,0}", "bf16[8192,4096]{1,0:S(5)}"
SIZE = 8192 * 4096 * 2
STACK = "bf16[8,8192,4096]{2,1,0:S(5)}"


def kernels(*lines, before="", parameter=DEVICE, result=DEVICE):
    body = "".join(f"  {line}\n" for line in lines)
    text = (
        f"HloModule m, is_scheduled=true\n\n{before}ENTRY %main (p: {parameter}) -> {result} {{\n"
        f"  %p = {parameter} parameter(0)\n{body}}}\n"
    )
    return inspect_text(text)


def update(start):
    """A slice written into, and one read from, a stack in the host's memory."""
    signature = f"(p: {STACK}, u: bf16[1,8192,4096], i: s32[]) -> {STACK}"
    wrapped = (
        f"%put {signature} {{\n  %p = {STACK} parameter(0)\n"
        "  %u = bf16[1,8192,4096]{2,1,0} parameter(1)\n  %i = s32[] parameter(2)\n"
        f"  ROOT %d = {STACK} dynamic-update-slice(%p, %u, %i, %i, %i)\n}}\n\n"
    )
    update = "%u = bf16[1,8192,4096]{2,1,0} broadcast(%i), dimensions={}"
    if start:
        inside = f"({STACK}, bf16[1,8192,4096]{{2,1,0}}, s32[])"
        whole = f"({inside}, {STACK}, u32[])"
        calls = (f"%s = {whole} fusion-start(%p, %u, %i), kind=kLoop, calls=%put",
                 f"ROOT %r = {STACK} fusion-done(%s)")  # fmt: skip
    else:
        calls = (f"ROOT %r = {STACK} fusion(%p, %u, %i), kind=kLoop, calls=%put",)
    return kernels(
        "%i = s32[] constant(1)", update, *calls, before=wrapped, parameter=STACK, result=STACK
    )


CASES = {
    "a copy to": (lambda: kernels(f"ROOT %r = {HOST} copy(%p)", result=HOST), SIZE, 0),
    "a copy from": (lambda: kernels(f"ROOT %r = {DEVICE} copy(%p)", parameter=HOST), 0, SIZE),
    "an async copy to": (
        lambda: kernels(f"%s = ({HOST}, {DEVICE}, u32[]) copy-start(%p)",
                        f"ROOT %r = {HOST} copy-done(%s)", result=HOST), SIZE, 0),
    "an async copy from": (
        lambda: kernels(f"%s = ({DEVICE}, {HOST}, u32[]) copy-start(%p)",
                        f"ROOT %r = {DEVICE} copy-done(%s)", parameter=HOST), 0, SIZE),
    "MoveToHost": (
        lambda: kernels(f'ROOT %r = {DEVICE} custom-call(%p), custom_call_target="MoveToHost"'),
        SIZE, 0),
    "MoveToDevice": (
        lambda: kernels(f'ROOT %r = {DEVICE} custom-call(%p), custom_call_target="MoveToDevice"'),
        0, SIZE),
    "a slice into": (lambda: update(False), SIZE, 0),
    "a slice into, async": (lambda: update(True), SIZE, 0),
    "an addition of the host's": (
        lambda: kernels(f"ROOT %r = {DEVICE} negate(%p)", parameter=HOST), 0, SIZE),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_a_copy_takes_what_pcie_takes(what):
    make, to_host, from_host = CASES[what]
    found = make()
    assert (found.cost.to_host_bytes, found.cost.from_host_bytes) == (to_host, from_host)
    least = SIZE / rates_of("h100").host_bytes_per_s
    assert least <= found.cost.seconds < 1.2 * least
    assert found.cost.terms["host copies"] > 0.8 * least
    assert sum(found.cost.terms.values()) == pytest.approx(found.cost.seconds)
    assert "host copies" in found.unvalidated
    # The device's memory does not move what the host's memory holds.
    assert found.cost.memory_bytes <= 2 * SIZE + 100


def test_a_buffer_set_aside_on_the_host_moves_nothing():
    found = kernels(f'ROOT %r = {HOST} custom-call(), custom_call_target="AllocateBuffer"',
                    result=HOST)  # fmt: skip
    assert found.cost.to_host_bytes == found.cost.memory_bytes == 0
    assert found.work.unpriced == ()


def test_both_directions_run_at_once_unless_one_waits_for_the_other():
    start = f"%s = ({HOST}, {DEVICE}, u32[]) copy-start(%p)"
    back = f"%b = ({DEVICE}, {HOST}, u32[]) copy-start(%h)"
    one = kernels(start, f"%h = {HOST} copy-done(%s)", f"ROOT %r = {DEVICE} copy(%h)")
    tuple_of = f"({HOST}, {DEVICE})"
    body = (
        start, "%h = " + f"{HOST} custom-call(), custom_call_target=\"AllocateBuffer\"", back,
        f"%to = {HOST} copy-done(%s)", f"%from = {DEVICE} copy-done(%b)",
        f"ROOT %r = {tuple_of} tuple(%to, %from)",
    )  # fmt: skip
    both = kernels(*body, result=tuple_of)
    least = SIZE / rates_of("h100").host_bytes_per_s
    assert both.cost.to_host_bytes == both.cost.from_host_bytes == SIZE
    assert least <= both.cost.seconds < 1.1 * least
    assert one.cost.seconds >= 2 * least  # one after the other
