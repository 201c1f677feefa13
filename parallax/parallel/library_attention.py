"""The attention of cuDNN, for a sequence that no mesh axis splits.

cuDNN returns no partial softmax, so rings use their own step.
"""

import ctypes.util
import importlib.util

import jax

_DTYPES = ("float16", "bfloat16")
# Without a GPU, JAX does not know the capability of the program's GPU and uses the smaller limit.
WIDEST, WIDEST_COMPILED = 256, 128


def unsupported(q, k, v, axes: tuple[str, ...], segments: bool, partial_over) -> str | None:
    """Return why cuDNN cannot do this, in a few words; None if it can.

    The arguments are those of `ring_attention`. The limits on head_dim are those of Hopper GPUs.
    """
    if axes:
        return f"the sequence is split over {', '.join(axes)}, and it returns no partial softmax"
    if segments or partial_over is not None:
        return "it is called without segment ids, and with whole scores"
    if not q.dtype == k.dtype == v.dtype or q.dtype.name not in _DTYPES:
        return f"inputs are {q.dtype}, {k.dtype} and {v.dtype}, and it has {' and '.join(_DTYPES)}"
    has_gpu = jax.default_backend() == "gpu"
    widest = WIDEST if has_gpu else WIDEST_COMPILED
    if q.shape[-1] > widest or q.shape[-1] % 8 or v.shape[-1] != q.shape[-1]:
        return (
            f"head_dim is {q.shape[-1]} (values {v.shape[-1]}), and it has multiples of 8 up to "
            f"{widest}{'' if has_gpu else ' where no GPU is at hand'}"
        )
    described = jax.sharding.get_abstract_mesh().abstract_device
    if (jax.default_backend() if described is None else described.platform) != "gpu":
        return "it is for NVIDIA GPUs"
    if not is_installed():
        return "cuDNN is not installed (pip install nvidia-cudnn-cu12)"
    return None


def is_installed() -> bool:
    """Return whether cuDNN is installed, as a package or on the system."""
    has_package = _find_spec("nvidia.cudnn") is not None
    return has_package or ctypes.util.find_library("cudnn") is not None


def attend(q, k, v, *, is_causal: bool, scale: float) -> jax.Array:
    """Return attention [B, L, H, K] of q [B, L, H, K] and k, v [B, L, G, K], by cuDNN.

    It is differentiable. A rematerialised layer computes it again, because the residuals of its
    backward pass have no name that a rematerialisation policy could keep.
    """
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=is_causal, scale=scale, implementation="cudnn"
    )


def _find_spec(name: str):
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the parent package is missing too
        return None
