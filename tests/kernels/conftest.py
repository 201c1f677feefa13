"""Kernels that are interpreted, instruction by instruction, or compiled take seconds per test."""

SLOW = ("interpreted", "compiled", "in_a_ring", "clusters", "streaming_read", "cache_tiled_mlp")


def pytest_itemcollected(item):
    if any(word in item.path.stem for word in SLOW):
        item.add_marker("slow")
