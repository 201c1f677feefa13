"""The platform that a module's text was compiled for, by the signs that its compiler leaves."""

import re
from typing import Literal

Platform = Literal["cuda", "cpu", "tpu", ""]
# Tiled layouts such as {1,0:T(8,128)} exist on TPUs alone.
_TPU = re.compile(
    r'\{[0-9,]*:T\([0-9]|custom_call_target="(tpu_custom_call|TPU|xla_tpu)|"megacore_config"'
)
_CPU = re.compile(
    r'"outer_dimension_partitions"|__(ynn|onednn|acl|xnn)_fusion|"onednn_\w+_config"|'
    r'custom_call_target="(__onednn|__ynn|__acl|__xla_cpu|lapack_|blas_|\w*python_cpu)'
)
_CUDA = re.compile(
    r'custom_call_target="(__cub|__cudnn|__cusolver|__gpu\$|cusolver_|cublas_|cudnn|cusparse|'
    r"cufft|cu_|hip|rocm|triton|__triton|mosaic_gpu|\w*python_gpu)|"
    r'"(operation_queue_id|wait_on_operation_queues|force_earliest_schedule|reification_cost|'
    r"gemm_backend_config|collective_backend_config|fusion_backend_config|"
    r'native_emitter_backend_config|cudnn_\w+_config)"|__triton|fingerprint_before_lhs'
)


def platform_of(text: str) -> Platform:
    """Return the platform that a text shows; "" for a text that no compiler printed whole.

    A scheduled module that XLA printed, with no sign of a GPU in any kernel, is a CPU's: XLA writes
    a configuration to nearly every kernel of a GPU.
    """
    if _TPU.search(text):
        return "tpu"
    if _CPU.search(text):
        return "cpu"
    if _CUDA.search(text):
        return "cuda"
    head = text[: text.find("\n", text.find("HloModule "))]
    printed = "is_scheduled=true" in head and "entry_computation_layout=" in head
    return "cpu" if printed else ""
