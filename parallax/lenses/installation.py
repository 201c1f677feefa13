"""What is installed here, which devices there are, and which lenses work with them."""

import collections
import os
import platform
import re
from pathlib import Path

from parallax.distributed.cuda_plugin import NVIDIA_DRIVER
from parallax.kernels.assembler import first_found
from parallax.lenses.environment import installed_versions, missing_compiler

_PACKAGES = (
    "parallax-sharding", "jax", "jaxlib", "flax", "numpy", "optax", "orbax-checkpoint", "qwix",
    "tokenizers", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-cuda12-pjrt", "jax-cuda13-pjrt",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvcc",
)  # fmt: skip
_VARIABLES = ("JAX_", "XLA_", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
_OURS = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"  # set where there is no driver


def installation() -> tuple[list[tuple[str, str]], bool]:
    """Describe this installation; starts JAX.

    Returns:
      (what, value) of each fact, and whether all four lenses work.
    """
    driver, (found, failed) = nvidia_driver(), _gpus()
    missing = (missing_compiler() or "").removeprefix("compile lens not run: ")
    assembler = first_found()
    compiles = f"does not: {missing}" if missing else "works, for GPUs that need not be here"
    lenses = {
        "verify": "works, on virtual CPU devices",
        "compile": compiles,
        "predict": f"does not, as nothing compiles: {missing}" if missing else "works",
        "measure": _measures(found, driver, failed),
    }
    names = [k for k in sorted(os.environ) if k.startswith(_VARIABLES) and k != _OURS]
    settings = " ".join(_without_folders(f"{k}={os.environ[k]}") for k in names)
    facts = [
        ("Python", f"{platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores"),
        *((name, version or "not installed") for name, version in _versions().items()),
        ("ptxas", f"{assembler.version}, {assembler.source}" if assembler else "not found"),
        ("NVIDIA driver", driver or "not found"),
        ("GPUs", found or "none that JAX sees"),
        ("environment", settings or "nothing of JAX is set"),
        *lenses.items(),
    ]
    return facts, not any(says.startswith("does not") for says in lenses.values())


def nvidia_driver() -> str:
    """Return the version of the NVIDIA driver that runs here; "" without one."""
    if not NVIDIA_DRIVER.exists():
        return ""
    number = re.search(r"\b\d{3}\.[\d.]+", NVIDIA_DRIVER.read_text(encoding="utf-8"))
    return number[0] if number else "of unknown version"


def _gpus() -> tuple[str, str]:
    """Return the GPUs that JAX sees, in words, and why it does not start; "" for none of it."""
    import jax

    try:
        kinds = collections.Counter(d.device_kind for d in jax.devices() if d.platform == "gpu")
    except RuntimeError as error:  # a platform that JAX_PLATFORMS names and that cannot start
        return "", str(error).splitlines()[0]
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items()), ""


def _measures(gpus: str, driver: str, failed: str) -> str:
    if failed:
        return f"does not: JAX does not start: {failed}. See JAX_PLATFORMS under environment."
    if gpus:
        return f"works, on {gpus}"
    why = "no GPU is here"
    if driver:
        why = (
            "a driver is here and JAX sees no GPU: pip install 'parallax-sharding[cuda12]' (or "
            "cuda13), and leave JAX_PLATFORMS unset"
        )
    return f"works on CPU devices only, whose times say nothing of GPUs: {why}"


def _versions() -> dict[str, str]:
    """Return the version of each package; of the optional ones only those that are installed."""
    found = installed_versions(*_PACKAGES)
    needed = {name: found.get(name, "") for name in _PACKAGES[:9]}
    plugins = {n: v for n, v in found.items() if n not in needed}
    has_plugin = any("plugin" in name for name in plugins)
    return needed | ({} if has_plugin else {"CUDA plugin of JAX": ""}) | plugins


def _without_folders(setting: str) -> str:
    """Return NAME=VALUE with the folders of its paths left out, which are nobody's business."""
    return re.sub(r"(?<![\w.])(?:/[\w.+@-]+)+/?", lambda m: f".../{Path(m[0]).name}", setting)
