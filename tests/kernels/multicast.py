"""Copies that a cluster's two blocks of threads make together, for Mosaic's interpreter.

The interpreter has each block copy for itself, and so cannot see one overwrite what the other still
reads. Here the leader makes every such copy for both, once the other has come to the same copy: on
a GPU each copies half, and the data is not there before. It patches JAX's own modules.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, jaxpr_interpret

# Of an allocation's key: which block of threads has it.
_BLOCK = 2
_PATIENCE_S = 60.0


@contextlib.contextmanager
def multicasting(leader: int) -> Iterator[Counter[int]]:
    """Inside, kernels interpreted copy so. Yields how many copies each block took part in."""
    copies: Counter[int] = Counter()
    copy = gpu_callbacks.copy_gmem_to_smem
    (interpreter,) = (
        x for x in vars(jaxpr_interpret).values() if hasattr(x, "_interpret_copy_gmem_to_smem_p")
    )
    interpret = interpreter._interpret_copy_gmem_to_smem_p

    def copy_for_both(*, token, thread, dst_allocation_key_as_array,
                      barrier_allocation_key_as_array, **other):  # fmt: skip
        me = int(thread.block_id)
        copies[me] += 1
        if me != leader:
            return token
        turn, end = copies[me], time.monotonic() + _PATIENCE_S
        while copies[1 - me] < turn:
            assert time.monotonic() < end, "the other block never comes to this copy"
            time.sleep(1e-3)
        for block in (me, 1 - me):
            memory, barrier = (
                _of_block(key, block)
                for key in (dst_allocation_key_as_array, barrier_allocation_key_as_array)
            )
            copy(token=token, thread=thread, dst_allocation_key_as_array=memory,
                 barrier_allocation_key_as_array=barrier, **other)  # fmt: skip
        return token

    def interpret_copy(self, eqn, *args):
        # The callback is bound while the copy is traced.
        if eqn.params["collective_axes"]:
            gpu_callbacks.copy_gmem_to_smem = copy_for_both
        try:
            return interpret(self, eqn, *args)
        finally:
            gpu_callbacks.copy_gmem_to_smem = copy

    interpreter._interpret_copy_gmem_to_smem_p = interpret_copy
    try:
        yield copies
    finally:
        interpreter._interpret_copy_gmem_to_smem_p = interpret


def _of_block(key, block: int) -> Any:
    key = np.array(key)
    key.reshape(-1)[_BLOCK] = block
    return key
