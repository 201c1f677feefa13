"""The execution trace: a scheduled program as kernels, collectives, loops and branches.

A trace holds what cost estimation needs and nothing else: it is small, frozen and free of HLO text.
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
    """One batched matrix product [m, k] x [k, n]; `dtype` is the HLO dtype of the operands."""

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
    """One kernel launch on a device.

    Attributes:
      name: name of the HLO instruction, and of the array it writes.
      reads: (array, bytes read of it) pairs.
      written_bytes: bytes written.
      gemms: matrix products inside.
      attention: the call of cuDNN's fused attention; None for other kernels.
      flops: FLOPs declared by a hand-written kernel; 0 for others.
      computes: what a hand-written kernel's FLOPs compute.
      op_name: name stack of the op in the Python program.
      unknown: target of a custom call of which only the bytes are known; "" otherwise.
      weights, kv_cache: the arrays read that hold stored weights, and keys and values; known in
        synthetic traces alone.
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
    """One execution of a collective."""

    name: str
    collective: Collective


@dataclass(frozen=True)
class Start:
    """The start of work on another stream, which `Wait(name)` waits for."""

    name: str
    what: "Kernel | Send"


@dataclass(frozen=True)
class Wait:
    """A wait until the work that `Start(name)` began has finished."""

    name: str


@dataclass(frozen=True)
class Loop:
    """A loop over a computation.

    Attributes:
      name: name of the loop.
      count: trip count.
      body, condition: computations run in each iteration.
      known: whether the compiler knows the trip count; otherwise it depends on data and is derived.
      held: arrays that no iteration changes: (name inside, name outside, bytes).
      same_weights: whether all iterations read the same weights, as tiles of one expert's rows do.
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
    """A branch: one of several computations runs, depending on data."""

    name: str
    branches: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """A call of another computation."""

    name: str


Step = Kernel | Send | Start | Wait | Loop | Choice | Call


@dataclass(frozen=True)
class ExecutionTrace:
    """The execution trace of a program: the steps of its computations in scheduled order.

    Attributes:
      entry: name of the entry computation.
      steps: computation -> its steps.
      devices: number of devices that run the program.
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
