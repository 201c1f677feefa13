"""A Mosaic kernel for Hopper that reads a buffer once at full rate, to measure what a cache holds.

Every byte is added up, so that no read can be optimised away; almost nothing is written.
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

LANES = 128  # int32 values per row: one for each thread that adds
ROWS = 32  # rows per chunk: 16 KB, one copy
CHUNK_BYTES = ROWS * LANES * 4
# Thread blocks, one per multiprocessor; and chunks in flight per block: 128 KB, several times its
# share of the memory's rate times the memory's latency.
BLOCKS, STAGES = MULTIPROCESSORS, 8
_CONSUMER, _PRODUCER = 0, 1


def streaming_read(data: jax.Array, after: jax.Array, name: str = "streaming_read") -> jax.Array:
    """Sum `data` over its rows, into one row per thread block.

    Args:
      data: [rows, 128] int32, rows a multiple of 32.
      after: [blocks, 128] int32, the result of an earlier call, which this one waits for.
      name: the kernel's name in profilers.

    Returns:
      [min(132, chunks), 128] int32, wrapping around.

    Cost: reads the bytes of data, in chunks of 16 KB dealt out over blocks round-robin.
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
    """The body of one thread block; arguments are arrays in device memory."""
    del after  # an operand that only orders the calls
    block, warpgroup = lax.axis_index("block"), lax.axis_index("warpgroup")
    steps = lax.div(chunks - block + (blocks - 1), i32(blocks))

    def scope(ring: hopper.Ring):
        def load():
            @pl.loop(0, steps)
            def _(j):
                chunk = data.at[pl.ds((block + j * blocks) * ROWS, ROWS)]
                ring.fill(j, functools.partial(plgpu.copy_gmem_to_smem, chunk))

            ring.drain(steps)

        def add():
            def step(j, total):
                chunk = ring.wait(j)
                for row in range(ROWS):
                    total += plgpu.load(chunk.at[row], layout=layout)
                ring.free(j, loaded=True)
                return total

            layout = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)
            zeros = plgpu.layout_cast(jnp.zeros((LANES,), jnp.int32), layout)
            out[block] = lax.fori_loop(0, steps, step, zeros)

        pl.when(warpgroup == _PRODUCER)(load)
        pl.when(warpgroup == _CONSUMER)(add)

    memory = plgpu.SMEM((STAGES, ROWS, LANES), jnp.int32)
    pl.run_scoped(scope, hopper.ring(memory, STAGES, consumers=1), collective_axes="warpgroup")
