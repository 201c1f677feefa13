"""The specifications of each kind of GPU, and the file that describes it to the compiler.

Sources, per GPU unless stated otherwise:
  FLOP/s: dense (not sparse) rates of NVIDIA's datasheets: H100 and H200 SXM, A100 80 GB SXM,
    HGX B200 (its eight-GPU figures divided by eight).
  Memory bandwidth, memory, L2, SMs, shared memory: what the driver reports for the device, which
    is what the target config in `targets/` says and the compiler plans with.
  L2 bandwidth: an upper bound, 64 bytes per clock into every SM at the boost clock (1.98, 1.41,
    1.965 GHz); measured rates are about half of it.
  NVLink, one direction: 18 links of 25 GB/s (H100, H200), 12 of 25 (A100), 18 of 50 (B200).
  PCIe, one direction: 16 lanes of generation 5 (H100, H200, B200) or 4 (A100), 32 or 16 GT/s per
    lane, 128 bits of data in 130.
  FP8: datasheets, dense; a GPU without FP8 units converts and multiplies in 16 bits.
  TDP: datasheets, maximum configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_TARGETS = Path(__file__).parent / "targets"
_MEMORY_FIELD = re.compile(r"^(\s*device_memory_size:\s*)\d+", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Args:
      name: the short name used in cluster names, such as `h100`.
      device_kind: what JAX calls it in `device.device_kind`.
      compute_capability: major and minor.
      bf16_flops: dense tensor-core FLOP/s in bfloat16 and float16 (they are equal).
      tf32_flops: dense tensor-core FLOP/s on float32 inputs rounded to TF32.
      fp32_flops: FLOP/s in float32 outside the tensor cores.
      fp64_flops: FLOP/s in float64, tensor cores included.
      int8_flops: dense tensor-core operations/s in INT8.
      fp8_flops: dense tensor-core FLOP/s on FP8 inputs.
      hbm_bytes_per_s: device memory bandwidth.
      memory_bytes: device memory that a program sees; equal to the target config's.
      l2_bytes: size of the L2 cache.
      l2_bytes_per_s: an upper bound of the L2 cache's bandwidth.
      sm_count: number of streaming multiprocessors.
      smem_bytes: shared memory of one SM.
      nvlink_bytes_per_s: NVLink bandwidth in one direction.
      nic_bytes_per_s: network bandwidth per GPU in one direction, in the usual eight-GPU server.
      pcie_bytes_per_s: PCIe bandwidth between a GPU and its host in one direction.
      tdp_w: board power limit, watts.
      target: file name of the target config in `meshes/targets`.
    """

    name: str
    device_kind: str
    compute_capability: tuple[int, int]
    bf16_flops: float
    tf32_flops: float
    fp32_flops: float
    fp64_flops: float
    int8_flops: float
    fp8_flops: float
    hbm_bytes_per_s: float
    memory_bytes: int
    l2_bytes: int
    l2_bytes_per_s: float
    sm_count: int
    smem_bytes: int
    nvlink_bytes_per_s: float
    nic_bytes_per_s: float
    pcie_bytes_per_s: float
    tdp_w: float
    target: str

    def peak_flops(self, dtype: str) -> float:
        """Return the peak FLOP/s (int8: operations/s) of a matrix product with inputs of `dtype`.

        Args:
          dtype: a NumPy-style name (`bfloat16`, `float16`, `float32`, `float64`, `int8`),
            `float8` for any format of FP8, or `tensorfloat32` for float32 inputs under JAX's
            TensorFloat-32 precision.

        Raises:
          ValueError: there is no figure for the dtype.
        """
        rates = {
            "bfloat16": self.bf16_flops,
            "float16": self.bf16_flops,
            "tensorfloat32": self.tf32_flops,
            "float32": self.fp32_flops,
            "float64": self.fp64_flops,
            "int8": self.int8_flops,
            "float8": self.fp8_flops,
        }
        if dtype not in rates:
            raise ValueError(
                f"Gpu {self.name!r}: no peak rate for dtype {dtype!r}. Use one of: "
                f"{', '.join(rates)}."
            )
        return rates[dtype]

    def target_config(self, memory_bytes: int | None = None) -> str:
        """Return the text of the target config that the CUDA compiler takes in place of a device.

        Args:
          memory_bytes: device memory that the compiler plans for; None keeps the GPU's own. With
            a very large figure the compiler does not rematerialise to fit.
        """
        text = (_TARGETS / self.target).read_text(encoding="utf-8")
        if memory_bytes is None:
            return text
        text, count = _MEMORY_FIELD.subn(rf"\g<1>{memory_bytes}", text)
        assert count == 1, f"{self.target}: device_memory_size occurs {count} times, expected 1"
        return text


_PCIE_5, _PCIE_4 = (16 * transfers / 8 * 128 / 130 for transfers in (32e9, 16e9))
_HOPPER = {
    "compute_capability": (9, 0),
    "bf16_flops": 989e12,
    "tf32_flops": 494.5e12,
    "fp32_flops": 67e12,
    "fp64_flops": 67e12,
    "int8_flops": 1978e12,
    "fp8_flops": 1978e12,
    "l2_bytes_per_s": 132 * 64 * 1.98e9,
    "sm_count": 132,
    "smem_bytes": 233_472,
    "nvlink_bytes_per_s": 450e9,
    # DGX H100 and H200: eight ConnectX-7 of 400 Gb/s for eight GPUs.
    "nic_bytes_per_s": 50e9,
    "pcie_bytes_per_s": _PCIE_5,
    "tdp_w": 700.0,
}

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="h100",
            device_kind="NVIDIA H100 80GB HBM3",
            hbm_bytes_per_s=3.35232e12,
            memory_bytes=84_942_979_072,
            l2_bytes=52_428_800,
            target="h100_sxm.txtpb",
            **_HOPPER,
        ),
        Gpu(
            name="h200",
            device_kind="NVIDIA H200",
            hbm_bytes_per_s=4.8e12,
            memory_bytes=151_397_597_184,
            l2_bytes=62_914_560,
            target="h200_sxm.txtpb",
            **_HOPPER,
        ),
        Gpu(
            name="a100",
            device_kind="NVIDIA A100-SXM4-80GB",
            compute_capability=(8, 0),
            bf16_flops=312e12,
            tf32_flops=156e12,
            fp32_flops=19.5e12,
            fp64_flops=19.5e12,
            int8_flops=624e12,
            fp8_flops=312e12,
            hbm_bytes_per_s=2.03904e12,
            memory_bytes=85_100_068_864,
            l2_bytes=41_943_040,
            l2_bytes_per_s=108 * 64 * 1.41e9,
            sm_count=108,
            smem_bytes=167_936,
            nvlink_bytes_per_s=300e9,
            # DGX A100: eight ConnectX-6 of 200 Gb/s for eight GPUs.
            nic_bytes_per_s=25e9,
            pcie_bytes_per_s=_PCIE_4,
            tdp_w=400.0,
            target="a100_sxm.txtpb",
        ),
        Gpu(
            name="b200",
            device_kind="NVIDIA B200",
            compute_capability=(10, 0),
            bf16_flops=2250e12,
            tf32_flops=1125e12,
            fp32_flops=75e12,
            fp64_flops=37e12,
            int8_flops=4500e12,
            fp8_flops=4500e12,
            hbm_bytes_per_s=7.67232e12,
            memory_bytes=191_514_411_008,
            l2_bytes=132_644_864,
            l2_bytes_per_s=148 * 64 * 1.965e9,
            sm_count=148,
            smem_bytes=233_472,
            nvlink_bytes_per_s=900e9,
            # DGX B200: eight ConnectX-7 of 400 Gb/s for eight GPUs (its user guide); servers with
            # 800 Gb/s cards exist: `dataclasses.replace(cluster, nic_bytes_per_s=100e9)`.
            nic_bytes_per_s=50e9,
            pcie_bytes_per_s=_PCIE_5,
            tdp_w=1000.0,
            target="b200_sxm.txtpb",
        ),
    )
}
