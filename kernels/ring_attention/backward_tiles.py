"""The tiling of the backward kernels: for each head_dim, the passes that ship, and why.

A pass holds 64 or 128 "fixed" rows of one side (queries for dq, keys for dk and dv) in shared
memory, streams the "moving" rows of the other side, and writes each result once: no atomics, the
same bits every run. Each recomputes S = fixed_1 moving_1^T and dP = fixed_2 moving_2^T, so that a
step is 7 products, not 5 (9 for heads of 512). One pass that adds dq to device memory block by
block would move 4 K bytes of float32 sums through the L2 for every 64 scores of a query: for heads
of 256 as much as it loads.

Two bodies, since a warpgroup's registers hold 64 x 256 float32 of results beside the scores:
  rows: each consumer warpgroup has 64 rows and all of their results (head_dim up to 128; dq at
    256), or half of their columns (dv at 512, where a thread block computes half).
  pair: both share 64 rows. One computes S and P, the other dP and dS; then each computes one of two
    results (dv and dk at 256) or half of the columns of one (dq, and dk, at 512).

The least time for 64 x 64 scores, moving rows by 64, in units of K clocks of an SM, if all of it
overlaps (4,096 FLOP and 128 bytes of shared memory per clock; about 24 bytes from the L2, all SMs
at once; wgmma reads both operands of S and dP from shared memory, one operand otherwise):
                              tensor cores   shared memory   L2             bound
  rows, dq                    6              6               5.3            6
  rows, dv and dk             8              7               5.3            8
  pair, dv and dk             8              9               5.3 (10.7)     9
  pair, dq or dk              6              8               5.3 (10.7)     8
  rows, dv in two parts       6              6.5             8              8
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
      makes: the gradients computed, of "dq", "dv" and "dk", in the order of their products. Queries
        are fixed for dq, keys for the others.
      moving: moving rows per block, 64 or 128.
      stages: blocks of moving_1 (k, or q) and of moving_2 (v, or d_out) in shared memory; in a pair
        with `chunk` below head_dim, the second counts column chunks of moving_2.
      pair: whether both consumer warpgroups share 64 fixed rows (see above).
      chunk: columns of moving_2 loaded at a time; 0: all that the thread block needs.
      parts: thread blocks that share the columns of a result.
      cluster: thread blocks, with neighbouring fixed rows, that load the moving rows together: each
        loads a share, for all.
    """

    makes: tuple[str, ...]
    moving: int
    stages: tuple[int, int]
    pair: bool = False
    chunk: int = 0
    parts: int = 1
    cluster: int = 1

    @property
    def fixed(self) -> int:
        """Number of fixed rows per thread block."""
        return ROWS if self.pair else 2 * ROWS

    @property
    def needs_dp(self) -> bool:
        return self.makes != ("dv",)

    @property
    def products(self) -> int:
        """Number of products of L x M x K multiplications that this pass computes."""
        scores = 2 if self.needs_dp else 1
        return scores * self.parts + len(self.makes)

    @property
    def keys_fixed(self) -> bool:
        return "dq" not in self.makes

    def shared_bytes(self, head_dim: int) -> int:
        """Compute the shared memory of the arrays with 2-byte inputs, without barriers.

        Barriers take some hundred bytes more.
        """
        arrays = 2 if self.needs_dp else 1
        fixed = arrays * self.fixed * head_dim
        first, second = self.stages
        second_columns = self.chunk or head_dim // self.parts
        loaded = fixed + self.moving * (first * head_dim + second * second_columns)
        pieces = head_dim // WIDE if self.pair else 1
        sums = arrays * first * pieces * self.moving
        exchanged = ROWS * self.moving if self.pair else 0
        return 2 * loaded + 4 * (sums + exchanged)


PASSES = {
    64: (
        Pass(("dq",), moving=128, stages=(3, 3)),
        Pass(("dv", "dk"), moving=128, stages=(3, 3)),
    ),
    128: (
        Pass(("dq",), moving=128, stages=(2, 2)),
        Pass(("dv", "dk"), moving=64, stages=(3, 3)),
    ),
    256: (
        Pass(("dq",), moving=64, stages=(2, 1)),
        Pass(("dv", "dk"), moving=64, stages=(2, 2), pair=True, cluster=2),
    ),
    512: (
        Pass(("dq",), moving=64, stages=(1, 2), pair=True, chunk=64, cluster=2),
        Pass(("dk",), moving=64, stages=(1, 2), pair=True, chunk=64, cluster=2),
        Pass(("dv",), moving=64, stages=(1, 1), parts=2),
    ),
}


def score_elements(q_length: int, kv_length: int, is_causal: bool, cut: Pass) -> int:
    """Count the scores of one head that a pass computes: its visible blocks, whole and padded."""
    fixed, moving = (kv_length, q_length) if cut.keys_fixed else (q_length, kv_length)
    total = 0
    rows = cut.fixed * cut.cluster
    for first in range(0, fixed, rows):
        blocks = -(-moving // cut.moving)
        if is_causal and cut.keys_fixed:
            blocks -= first // cut.moving
        elif is_causal:
            blocks = -(-min(moving, first + rows) // cut.moving)
        total += rows * blocks * cut.moving
    return total
