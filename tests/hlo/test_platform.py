"""A module for a CPU or a TPU is named as one and has no time; its counts stay."""

import pytest

from parallax.commands.inspect import inspect_text
from parallax.hlo.platform import platform_of
from tests.hlo.test_versions import TEXTS

TPU = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(bf16[512,256]{1,0:T(8,128)(2,1)}, \
bf16[256,1024]{1,0:T(8,128)(2,1)})->bf16[512,1024]{1,0:T(8,128)(2,1)}}, num_partitions=4

%region_0.5 (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %s = bf16[]{:T(256)} add(%a, %b)
}

%fused_computation (p0: bf16[512,256], p1: bf16[256,1024]) -> bf16[512,1024] {
  %p0 = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[256,1024]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[512,1024]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

ENTRY %main.9 (x: bf16[512,256], w: bf16[256,1024]) -> bf16[512,1024] {
  %x = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (bf16[256,1024]{1,0:T(8,128)(2,1)S(1)}, bf16[256,1024]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) copy-start(%w)
  %copy-done = bf16[256,1024]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %fusion = bf16[512,1024]{1,0:T(8,128)(2,1)} fusion(%x, %copy-done), kind=kOutput, \
calls=%fused_computation, backend_config={"flag_configs":[],"window_config":\
{"kernel_window_bounds":["16","8"]},"scoped_memory_configs":[]}
  ROOT %all-reduce = bf16[512,1024]{1,0:T(8,128)(2,1)} all-reduce(%fusion), channel_id=1, \
replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%region_0.5
}
"""


def test_a_module_of_a_tpu():
    found = inspect_text(TPU)
    assert (found.platform, found.timed) == ("tpu", None)
    assert found.untimed.startswith("this module was compiled for a TPU")
    with pytest.raises(ValueError, match="no time: this module was compiled for a TPU"):
        _ = found.cost
    assert found.gemm_flops == 2 * 512 * 256 * 1024
    (sent,) = found.ledger
    assert sent.wire_bytes == 2 * 3 / 4 * 512 * 1024 * 2
    assert found.argument_bytes == (512 * 256 + 256 * 1024) * 2
    assert found.result_bytes == 512 * 1024 * 2
    assert found.to_dict()["step"] is None
    assert found.to_dict()["kernels"] == []


@pytest.mark.parametrize(("version", "program"), [k for k in TEXTS if not k[1].endswith("before")])
def test_each_version_and_platform_is_told_apart(version, program):
    assert platform_of(TEXTS[version, program]) == version.rpartition("-")[2]


@pytest.mark.parametrize(
    ("sign", "platform"),
    [
        ('custom_call_target="__onednn$matmul"', "cpu"),
        ('custom_call_target="lapack_sgetrf_ffi"', "cpu"),
        ('custom_call_target="xla_ffi_python_cpu_callback"', "cpu"),
        ('backend_config={"outer_dimension_partitions":["2"]}', "cpu"),
        ('backend_config={"fusion_config":{"kind":"__ynn_fusion"}}', "cpu"),
        ('custom_call_target="tpu_custom_call"', "tpu"),
        ('custom_call_target="__cublas$gemm"', "cuda"),
        ('custom_call_target="cusolver_geqrf_ffi"', "cuda"),
        ('backend_config={"operation_queue_id":"0"}', "cuda"),
        ("metadata={op_name=\"jit(f)/__cublas\"}", "cpu"),
        ("", "cpu"),
    ],
)  # fmt: skip
def test_one_sign_is_enough(sign, platform):
    head = "HloModule m, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}\n"
    assert platform_of(f"{head}\n  %a = f32[8]{{0}} custom-call(%p), {sign}\n") == platform
    # A text by hand shows nothing, and is taken for a GPU's.
    by_hand = f"HloModule m\n\n  %a = f32[8]{{0}} custom-call(%p), {sign}\n"
    assert platform_of(by_hand) == (platform if sign and "op_name" not in sign else "")
