"""Calls of libraries: what is priced by its bytes, what takes several passes, what is unpriced."""

import pytest

from parallax.commands.inspect import inspect_text

X = "f32[256,512]{1,0}"
SIZE = 256 * 512 * 4


def kernel(line, result=X, before=""):
    text = (
        f"HloModule m, is_scheduled=true\n\n{before}ENTRY %main (p: {X}) -> {result} {{\n"
        f"  %p = {X} parameter(0)\n  ROOT %r = {result} {line}\n}}\n"
    )
    return inspect_text(text)


@pytest.mark.parametrize(
    "line",
    [
        'custom-call(%p), custom_call_target="cusolver_syevd_ffi"',
        'custom-call(%p, %p), custom_call_target="__cublas$triangularSolve"',
        'custom-call(%p), custom_call_target="xla_ffi_partitioned_python_gpu_callback"',
        'custom-call(%p), custom_call_target="somebody\'s kernel"',
        "cholesky(%p), lower=true",
        "triangular-solve(%p, %p), left_side=true",
        "outfeed(%p), outfeed_shape=f32[256,512]{1,0}",
    ],
)
def test_unpriced_work_is_named_and_leaves_no_error_bar(line):
    found = kernel(line)
    (what,) = found.work.unpriced
    assert what.split("$")[-1] in line
    assert found.error_bar == (None, None)
    assert what in found.unvalidated
    assert any(note.startswith(f"unpriced: {what}") for note in found.notes)
    assert found.to_dict()["step"]["low"] is None
    assert found.cost.memory_bytes + found.cost.to_host_bytes >= SIZE


@pytest.mark.parametrize(
    ("line", "times"),
    [
        ('custom-call(%p), custom_call_target="__gpu$TopK"', 1),
        ('custom-call(%p), custom_call_target="__cub$DeviceScan"', 1),
        ('custom-call(%p), custom_call_target="__cub$DeviceRadixSort"', 4),
        ("sort(%p), dimensions={1}, to_apply=%less", 17),
        ("fusion(%p), kind=kCustom, calls=%sorts", 17),
        ("fft(%p), fft_type=FFT, fft_length={512}", 1),
        ("fft(%p), fft_type=FFT, fft_length={256,512}", 2),
        ("fft(%p), fft_type=FFT, fft_length={131072}", 2),
    ],
)
def test_what_reads_its_array_more_than_once_takes_as_many_times(line, times):
    less = (
        "%less (a: f32[], b: f32[]) -> pred[] {\n  %a = f32[] parameter(0)\n"
        "  %b = f32[] parameter(1)\n  ROOT %c = pred[] compare(%a, %b), direction=LT\n}\n\n"
    )
    sorts = (
        f"%sorts (q: {X}) -> {X} {{\n  %q = {X} parameter(0)\n"
        f"  ROOT %s = {X} sort(%q), dimensions={{1}}, to_apply=%less\n}}\n\n"
    )
    found = kernel(line, before=less + sorts)
    assert found.cost.memory_bytes == 2 * SIZE * times
    assert found.work.unpriced == ()
    assert None not in found.error_bar
