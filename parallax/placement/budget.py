"""How many bytes of a layer group are to stay near a GPU's cores: caches, or a number."""

import re
from dataclasses import dataclass

from parallax.meshes.gpus import Gpu

# Of the L2 cache: the most that a persisting window may take on these GPUs (62.5 %).
L2_SHARE = 0.625
# Of shared memory: a kernel's own stages and the driver's kilobyte a block leave about this much.
SMEM_SHARE = 0.9
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(|k|M|G|Ki|Mi|Gi)B?")


@dataclass(frozen=True)
class Budget:
    """Bytes of one device, and where the figure is from."""

    n_bytes: int
    source: str


def parse_budget(text: str, gpu: Gpu) -> Budget:
    """`l2`, `smem`, `l2+smem`, or bytes such as `50MB` or `49.5Mi`.

    Args:
      text: as a flag has it.
      gpu: whose caches are meant.

    Raises:
      ValueError: none of these, or no bytes at all.
    """
    caches = {
        "l2": (
            int(L2_SHARE * gpu.l2_bytes),
            f"{L2_SHARE:.3g} of {gpu.name}'s L2 cache (a persisting window's most; assumed)",
        ),
        "smem": (
            int(SMEM_SHARE * gpu.sm_count * gpu.smem_bytes),
            f"{SMEM_SHARE:.3g} (assumed) of the shared memory of {gpu.sm_count} SMs",
        ),
    }
    if set(parts := text.split("+")) <= set(caches) and len(set(parts)) == len(parts):
        found = [caches[part] for part in parts]
        return Budget(sum(size for size, _ in found), " and ".join(said for _, said in found))
    return Budget(parse_bytes(text, "l2, smem, l2+smem or bytes"), "as given")


def parse_bytes(text: str, expected: str = "bytes") -> int:
    """Bytes such as `50MB` or `49.5Mi`. ValueError: anything else, or no bytes at all."""
    match = _BYTES.fullmatch(text)
    if match is None:
        raise ValueError(f"budget {text!r}: expected {expected} such as 50MB or 48Mi.")
    size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise ValueError(f"budget {text!r}: nothing fits into no bytes. Give at least one byte.")
    return size
