"""The tiling of the backward kernels: for each head_dim, the passes that ship, and why.

A pass holds a tile of 64 or 128 rows of one side (queries for dq, keys for dk and dv) in shared
memory, streams blocks of the other side's rows, and writes each result once: no atomics, the same
bits every run. Each recomputes S = tile_1 block_1^T and dP = tile_2 block_2^T, so that a step is 7
products, not 5 (9 for heads of 512). Adding dq to device memory block by block instead would move
4 K bytes of float32 sums through the L2 for every 64 scores of a query: at 256 as much as it loads.

A warpgroup's registers hold 64 x 256 float32 of results beside the scores. So each consumer has 64
rows and all of their results (head_dim up to 128; dq at 256), or half of their columns (dv at 512,
two thread blocks). Or a pair shares 64 rows: one computes S and P, the other dP and dS; then each
one of two results (dv and dk at 256) or half of the columns of one (dq, and dk, at 512).

The least time for 64 x 64 scores, in units of K clocks of an SM, if all of it overlaps (4,096 FLOP
and 128 bytes of shared memory per clock; about 24 bytes from the L2, all SMs at once; wgmma reads
both operands of S and dP from shared memory, one operand otherwise):
                          tensor cores   shared memory   L2             bound
  dq                      6              6               5.3            6
  dv and dk               8              7               5.3            8
  dv and dk by a pair     8              9               5.3 (10.7)     9
  dq or dk by a pair      6              8               5.3 (10.7)     8
  dv in two parts         6              6.5             8              8
In brackets: without a cluster of two thread blocks, each of which loads half of what both stream.
Five useful products take 10: at most 71 % of the tensor cores' rate for heads up to 128, 67 % for
256, 42 % for 512 (34 % without clusters). This is a model: no GPU has run it.
"""

from typing import NamedTuple

from parallax.kernels.chip import ROWS

# Columns of a float32 array in shared memory: 128 bytes, one swizzle.
CHUNK = 32
# Result columns per warpgroup of a pair: 128 registers.
WIDE = 256


class Pass(NamedTuple):
    """The static parameters of one kernel of the backward step.

    Attributes:
      makes: the gradients computed, of "dq", "dv" and "dk", in the order of their products. The
        tile's rows are queries for dq, keys for the others.
      block: rows per block, 64 or 128.
      stages: blocks of block_1 (k, or q) and of block_2 (v, or d_out) in shared memory; with
        `chunk`, the second counts pieces of block_2.
      pair: whether both consumer warpgroups share 64 rows (see above).
      chunk: columns of a piece of block_2; 0: all that the thread block needs.
      parts: thread blocks that share the columns of a result.
      cluster: thread blocks, with neighbouring tiles, that copy blocks together.
    """

    makes: tuple[str, ...]
    block: int
    stages: tuple[int, int]
    pair: bool = False
    chunk: int = 0
    parts: int = 1
    cluster: int = 1

    @property
    def rows(self) -> int:
        """Number of rows per tile, one tile per thread block."""
        return ROWS if self.pair else 2 * ROWS

    @property
    def cluster_rows(self) -> int:
        return self.rows * self.cluster

    @property
    def by_keys(self) -> bool:
        return "dq" not in self.makes

    @property
    def halves(self) -> bool:
        """Whether each consumer of a pair computes half of the columns of one result."""
        return self.pair and len(self.makes) == 1

    @property
    def needs_dp(self) -> bool:
        return self.makes != ("dv",)

    @property
    def inputs(self) -> int:
        """Number of arrays of a tile, and of sums, that it needs: for dv alone, no second ones."""
        return 2 if self.needs_dp else 1

    @property
    def products(self) -> int:
        """Number of products of L x M x K multiplications that this pass computes."""
        return self.inputs * self.parts + len(self.makes)

    def pieces(self, head_dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (number, columns) of the pieces of block_1, and of what is loaded of block_2."""
        first = WIDE if self.pair else head_dim
        own = head_dim // self.parts
        second = self.chunk or own
        return (head_dim // first, first), (own // second, second)


PASSES = {
    64: (
        Pass(("dq",), block=128, stages=(3, 3)),
        Pass(("dv", "dk"), block=128, stages=(3, 3)),
    ),
    128: (
        Pass(("dq",), block=128, stages=(2, 2)),
        Pass(("dv", "dk"), block=64, stages=(3, 3)),
    ),
    256: (
        Pass(("dq",), block=64, stages=(2, 1)),
        Pass(("dv", "dk"), block=64, stages=(2, 2), pair=True, cluster=2),
    ),
    512: (
        Pass(("dq",), block=64, stages=(1, 2), pair=True, chunk=64, cluster=2),
        Pass(("dk",), block=64, stages=(1, 2), pair=True, chunk=64, cluster=2),
        Pass(("dv",), block=64, stages=(1, 1), parts=2),
    ),
}
