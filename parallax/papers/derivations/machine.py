"""The derivations of papers' figures about the machine."""

from parallax.papers.derivations.memory import GIB, MIB
from parallax.papers.paper import Given


def l2_mib(given: Given) -> float:
    return given.cluster.gpu.l2_bytes / MIB


def smem_kib(given: Given) -> float:
    return given.cluster.gpu.smem_bytes / 1024


def memory_gib(given: Given) -> float:
    return given.cluster.gpu.memory_bytes / GIB


def hbm_tb_per_s(given: Given) -> float:
    return given.cluster.gpu.hbm_bytes_per_s / 1e12


def nvlink_both_ways_gb_per_s(given: Given) -> float:
    return 2 * given.cluster.gpu.nvlink_bytes_per_s / 1e9


def sixty_four_layers(given: Given) -> float:
    """Return the devices for 64 layers at one layer per device."""
    return 64.0


def thirty_two_layers(given: Given) -> float:
    return 32.0


def eight_layers(given: Given) -> float:
    return 8.0
