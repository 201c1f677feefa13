"""The budget of a layer group: the bytes that fit a GPU's caches, or a given number."""

from dataclasses import dataclass

from parallax.meshes.gpus import Gpu
from parallax.meshes.sizes import parse_bytes

# The share of the L2 cache that a persisting window may take at most on these GPUs (62.5 %).
L2_SHARE = 0.625
# The share of shared memory that a kernel's own stages and the driver's kilobyte per block leave.
SMEM_SHARE = 0.9


@dataclass(frozen=True)
class Budget:
    """The budget of one device in bytes, and the source of the figure."""

    n_bytes: int
    source: str


def parse_budget(text: str, gpu: Gpu) -> Budget:
    """Parse a budget: `l2`, `smem`, `l2+smem`, or bytes such as `50MB` or `49.5Mi`.

    Args:
      text: the text of a flag.
      gpu: the GPU whose caches are meant.

    Raises:
      ValueError: any other text, or zero bytes.
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
        chosen = [caches[part] for part in parts]
        return Budget(sum(size for size, _ in chosen), " and ".join(said for _, said in chosen))
    return Budget(parse_bytes(text, "budget", "l2, smem, l2+smem or bytes"), "as given")
