"""How the backward kernels cut the work: for each head_dim, the passes that ship.

Each pass holds 64 or 128 rows of one side (queries for dq, keys for dk and dv) in shared memory,
lets the other side stream past, and writes each result once: no atomics, the same bits every run.
S = fixed_1 moving_1^T and dP = fixed_2 moving_2^T are made again in each pass, so that a step is
7 products rather than 5 (9 for heads of 512). The alternative, one pass that adds dq to device
memory block by block, moves B H L M / 128 x 4 K bytes of float32 sums through the L2: at heads of
256 as much as all loads, of 512 more than the products take.

What bounds a block of 64 fixed rows and n moving ones, in clocks of one SM (4,096 FLOP and 128
bytes of shared memory a clock; about 24 bytes of L2 a clock, all SMs at once): a product is
n K / 32; wgmma reads its 64 rows from shared memory besides n others, so at n = 64 the copies of S
and dP take as long as the products, at n = 32 1.5 times; operands in registers (P, dS) take half.
Loading both moving arrays takes n K / 6. Two bodies:
  rows: each computing warpgroup has 64 rows of its own and all of their results (head_dim up to
    128; dq at 256; dv at 512, half of the columns a block of threads).
  pair: both share 64 rows, whose results fill the registers of both; one makes S and P, the other
    dP and dS (dk and dv at 256; dq and dk at 512, where each accumulates half of the columns).
Heads of 512 are bound by the L2 (about 7,600 clocks for 64 x 32 scores, of which 5 useful products
are 2,560), heads up to 256 by the products.
"""

from typing import NamedTuple

from parallax.kernels.ring_attention.tiles import ROWS

# Columns of a float32 array in shared memory: 128 bytes, one swizzle.
CHUNK = 32


class Pass(NamedTuple):
    """One kernel of the backward step.

    Attributes:
      makes: which gradients, of "dq", "dk" and "dv". Queries are fixed for dq, keys for the others.
      moving: rows of the other side in one block, a multiple of 16 that divides 128.
      stages: blocks of moving_1 (k, or q) and of moving_2 (v, or d_out) in shared memory; in a pair
        with `chunk` below head_dim, of moving_2 that many chunks of columns.
      pair: both computing warpgroups share 64 fixed rows (see above).
      chunk: columns of moving_2 loaded at a time; 0: all of those the block of threads needs.
      parts: blocks of threads that share the columns of a result.
    """

    makes: tuple[str, ...]
    moving: int
    stages: tuple[int, int]
    pair: bool = False
    chunk: int = 0
    parts: int = 1

    @property
    def fixed(self) -> int:
        """Rows of one block of threads."""
        return ROWS if self.pair else 2 * ROWS

    @property
    def products(self) -> int:
        """Of L x M x K multiplications, those that this pass makes of it."""
        scores = 1 if self.makes == ("dv",) else 2
        return scores * self.parts + len(self.makes)

    @property
    def keys_fixed(self) -> bool:
        return "dq" not in self.makes

    def shared_bytes(self, head_dim: int) -> int:
        """Shared memory of the arrays, barriers (some hundred bytes) not counted; 2-byte inputs."""
        fixed = self.fixed * head_dim * (1 if self.makes == ("dv",) else 2)
        first, second = self.stages
        second_columns = self.chunk or head_dim // self.parts
        loaded = fixed + self.moving * (first * head_dim + second * second_columns)
        rows = self.moving * 4 * first * (len(self.makes) if self.parts == 1 else 1)
        exchanged = ROWS * self.moving * 4 if self.pair else 0
        return loaded * 2 + exchanged + (rows if self.keys_fixed else 0)


PASSES = {
    64: (
        Pass(("dq",), moving=128, stages=(2, 2)),
        Pass(("dk", "dv"), moving=64, stages=(2, 2)),
    ),
    128: (
        Pass(("dq",), moving=64, stages=(2, 2)),
        Pass(("dk", "dv"), moving=64, stages=(2, 2)),
    ),
    256: (
        Pass(("dq",), moving=64, stages=(2, 1)),
        Pass(("dk", "dv"), moving=64, stages=(2, 2), pair=True),
    ),
    512: (
        Pass(("dq",), moving=64, stages=(1, 2), pair=True, chunk=64),
        Pass(("dk",), moving=64, stages=(1, 2), pair=True, chunk=64),
        Pass(("dv",), moving=64, stages=(1, 1), parts=2),
    ),
}


def score_elements(q_length: int, kv_length: int, is_causal: bool, cut: Pass) -> int:
    """Scores of one head that a pass computes (each part its own): its visible blocks, padded."""
    fixed, moving = (kv_length, q_length) if cut.keys_fixed else (q_length, kv_length)
    total = 0
    for first in range(0, fixed, cut.fixed):
        blocks = -(-moving // cut.moving)
        if is_causal and cut.keys_fixed:
            blocks -= first // cut.moving
        elif is_causal:
            blocks = -(-min(moving, first + cut.fixed) // cut.moving)
        total += cut.fixed * blocks * cut.moving
    return total
