"""A scheduled program as work: kernels with their products and bytes, collectives, loops, branches.

What a cost model needs of a program and nothing else: small, frozen, and with no HLO text in it.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from parallax.hlo.collectives import Collective
from parallax.hlo.cudnn import FusedAttention
from parallax.hlo.declared import Computes
from parallax.hlo.traffic import Reads


@dataclass(frozen=True)
class Gemm:
    """One batched matrix product [m, k] x [k, n]; `dtype` is what is multiplied (HLO name)."""

    batch: int
    m: int
    n: int
    k: int
    dtype: str

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.m * self.n * self.k


@dataclass(frozen=True)
class Kernel:
    """One launch on a device.

    Attributes:
      name: of the HLO instruction.
      reads: (array, bytes read of it).
      written: (array, bytes); of the kernel's own name where it has one result.
      gemms: matrix products inside.
      attention: of cuDNN's fused attention; None otherwise.
      flops: declared by a hand-written kernel; 0 otherwise.
      computes: what a hand-written kernel's FLOPs are.
      op_name: where in the Python program it came from.
      unknown: target of a custom call of which only the bytes are known; "" otherwise.
      weights, kv_cache: of the arrays read, those that hold stored weights, and keys and values;
        known of a synthetic trace alone.
    """

    name: str
    reads: Reads
    written_bytes: float
    gemms: tuple[Gemm, ...] = ()
    attention: FusedAttention | None = None
    flops: float = 0.0
    computes: Computes = "attention"
    op_name: str = ""
    unknown: str = ""
    weights: tuple[str, ...] = ()
    kv_cache: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> float:
        return sum(size for _, size in self.reads) + self.written_bytes


@dataclass(frozen=True)
class Send:
    """A collective; one execution."""

    name: str
    collective: Collective


@dataclass(frozen=True)
class Start:
    """Work put on another stream, to be waited for by `Wait(name)`."""

    name: str
    what: "Kernel | Send"


@dataclass(frozen=True)
class Wait:
    """The program goes on when this start has finished."""

    name: str


@dataclass(frozen=True)
class Loop:
    """A loop; `count` executions, `known` to the compiler (or told by data, then derived).

    Attributes:
      held: arrays that all executions find unchanged: (name inside, name outside, bytes).
      same_weights: all executions read the same weights, as tiles of one expert's rows do.
    """

    name: str
    count: float
    body: str
    condition: str
    known: bool = True
    held: tuple[tuple[str, str, float], ...] = ()
    same_weights: bool = False


@dataclass(frozen=True)
class Choice:
    """One of several computations, which one is data."""

    name: str
    branches: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """Another computation's steps."""

    name: str


Step = Kernel | Send | Start | Wait | Loop | Choice | Call


@dataclass(frozen=True)
class ExecutionTrace:
    """A program: steps of its computations in scheduled order.

    Attributes:
      entry: the computation that is run.
      steps: computation -> its steps.
      devices: that run it.
      unpriced: targets of custom calls of which only the bytes are known.
    """

    entry: str
    steps: Mapping[str, tuple[Step, ...]] = field(repr=False)
    devices: int = 1
    unpriced: tuple[str, ...] = ()

    @property
    def hand_written(self) -> bool:
        """Whether any kernel's cost is what its author declares."""
        steps = itertools.chain(*self.steps.values())
        kernels = (x.what if isinstance(x, Start) else x for x in steps)
        return any(isinstance(x, Kernel) and x.flops for x in kernels)
