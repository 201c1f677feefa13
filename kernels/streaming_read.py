"""A buffer read once at full rate, for measuring what a cache holds: a Mosaic kernel for Hopper.

Every byte is added up, so that nothing can be left out; next to nothing is written.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import MULTIPROCESSORS
from parallax.kernels.hopper import i32

LANES = 128  # of a row, int32: one for each thread that adds
ROWS = 32  # of a chunk: 16 KB, one copy
CHUNK_BYTES = ROWS * LANES * 4
# Blocks of threads, one a multiprocessor; and chunks on their way to each: 128 KB, several times
# what its share of the memory's rate times its latency asks for.
BLOCKS, STAGES = MULTIPROCESSORS, 8
_ADDER, _LOADER = 0, 1


def streaming_read(data: jax.Array, after: jax.Array, name: str = "streaming_read") -> jax.Array:
    """Sums of `data` down its rows, a row for each block of threads.

    Args:
      data: [rows, 128] int32, rows a multiple of 32.
      after: [blocks, 128] int32, what an earlier call returned: this one waits for it.
      name: of the kernel, for profilers.

    Returns:
      [min(132, chunks), 128] int32, wrapping around.

    Cost: the bytes of data, in chunks of 16 KB dealt out over blocks in turn.
    """
    chunks = data.shape[0] // ROWS
    blocks = min(BLOCKS, chunks)
    result = jax.ShapeDtypeStruct((blocks, LANES), jnp.int32)
    (sums,) = hopper.call(
        name,
        functools.partial(_kernel, chunks=chunks, blocks=blocks),
        [data, after],
        [result],
        grid={"block": blocks},
        flops=0.0,
        bytes_accessed=hopper.bytes_of(data, result),
        num_threads=2,
    )
    return sums


def _kernel(data, after, out, *, chunks: int, blocks: int):
    """Body of one block of threads; arguments are arrays in device memory."""
    del after  # an operand for the order of calls
    block, me = lax.axis_index("block"), lax.axis_index("warpgroup")
    steps = lax.div(chunks - block + (blocks - 1), i32(blocks))

    def scope(memory, arrived, free):
        def load():
            @pl.loop(0, steps)
            def _(j):
                slot = lax.rem(j, i32(STAGES))
                pl.when(j >= STAGES)(functools.partial(plgpu.barrier_wait, free.at[slot]))
                rows = pl.ds((block + j * blocks) * ROWS, ROWS)
                plgpu.copy_gmem_to_smem(data.at[rows], memory.at[slot], arrived.at[slot])

            # Every arrival is waited for, or the interpreter of JAX 0.11 objects.
            @pl.loop(jnp.maximum(steps - STAGES, 0), steps)
            def _(j):
                plgpu.barrier_wait(free.at[lax.rem(j, i32(STAGES))])

        def add():
            def step(j, total):
                slot = lax.rem(j, i32(STAGES))
                plgpu.barrier_wait(arrived.at[slot])
                for row in range(ROWS):
                    total += plgpu.load(memory.at[slot, row], layout=layout)
                plgpu.commit_smem()  # threads have read what the copy engine writes next
                plgpu.barrier_arrive(free.at[slot])
                return total

            layout = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)
            zeros = plgpu.layout_cast(jnp.zeros((LANES,), jnp.int32), layout)
            out[block] = lax.fori_loop(0, steps, step, zeros)

        pl.when(me == _LOADER)(load)
        pl.when(me == _ADDER)(add)

    pl.run_scoped(
        scope,
        plgpu.SMEM((STAGES, ROWS, LANES), jnp.int32),
        plgpu.Barrier(num_barriers=STAGES),
        plgpu.Barrier(num_barriers=STAGES),
        collective_axes="warpgroup",
    )
