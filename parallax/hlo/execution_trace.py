"""The execution trace: a scheduled program as kernels, collectives, loops and branches.

A trace holds what cost estimation needs and nothing else: it is small, frozen and free of HLO text.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from parallax.hlo.branches import Taken
from parallax.hlo.collectives import Collective
from parallax.hlo.cudnn import FusedAttention
from parallax.hlo.declared import Computes
from parallax.hlo.traffic import Reads


@dataclass(frozen=True)
class Gemm:
    """One batched matrix product [m, k] x [k, n], or the convolution that it computes.

    `dtype` is what the units multiply, see `parallax.hlo.products.Product`.
    """

    batch: int
    m: int
    n: int
    k: int
    dtype: str
    is_convolution: bool = False

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
      unknown: target of a custom call, or an opcode, of which only the bytes are known; ""
        otherwise.
      to_host_bytes, from_host_bytes: those of its bytes that it writes to and reads from the host's
        memory.
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
    to_host_bytes: float = 0.0
    from_host_bytes: float = 0.0

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
    """A branch: one of several computations runs, depending on data.

    Attributes:
      name: name of the branch.
      branches: the computations.
      taken: how often each is taken; () if it is not known.
    """

    name: str
    branches: tuple[str, ...]
    taken: tuple[Taken, ...] = ()


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
      unpriced: targets of custom calls, and other work, of which only the bytes are known.
      open_loops: loops of unknown trip count, by name and line: each runs once when it is reached.
    """

    entry: str
    steps: Mapping[str, tuple[Step, ...]] = field(repr=False)
    devices: int = 1
    unpriced: tuple[str, ...] = ()
    open_loops: tuple[str, ...] = ()

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """All kernels that its computations launch, each once."""
        steps = (getattr(x, "what", x) for x in itertools.chain(*self.steps.values()))
        return tuple(x for x in steps if isinstance(x, Kernel))

    @property
    def hand_written(self) -> bool:
        """Whether any kernel's cost is what its author declares."""
        return any(kernel.flops for kernel in self.kernels)

    @property
    def touches_host(self) -> bool:
        """Whether any kernel copies to or from the host's memory."""
        return any(kernel.to_host_bytes or kernel.from_host_bytes for kernel in self.kernels)

    @property
    def convolves(self) -> bool:
        """Whether any kernel is a convolution."""
        return any(gemm.is_convolution for kernel in self.kernels for gemm in kernel.gemms)

    @property
    def product_dtypes(self) -> frozenset[str]:
        """The dtypes of its matrix products."""
        return frozenset(gemm.dtype for kernel in self.kernels for gemm in kernel.gemms)

    def launches(self, taken: Callable[[tuple[str, ...]], str]) -> Iterator[tuple[Kernel, float]]:
        """Yield every launch and its executions.

        `taken` chooses the side that a branch runs, where it is not known how often each does.
        """

        def visit(computation: str, times: float) -> Iterator[tuple[Kernel, float]]:
            for step in self.steps[computation]:
                kernel = getattr(step, "what", step)
                if isinstance(kernel, Kernel):
                    yield kernel, times
                elif isinstance(step, Loop):
                    yield from visit(step.body, times * step.count)
                    yield from visit(step.condition, times * step.count)
                elif isinstance(step, Choice) and step.taken:
                    for side, how in zip(step.branches, step.taken, strict=True):
                        yield from visit(side, times * float(how.executions))
                elif isinstance(step, Choice):
                    yield from visit(taken(step.branches), times)
                elif isinstance(step, Call):
                    yield from visit(step.name, times)

        yield from visit(self.entry, 1.0)

    def dtype_flops(self) -> dict[str, float]:
        """Count the FLOPs of products in one run by dtype; a branch counts its first side."""
        flops: dict[str, float] = {}
        for kernel, times in self.launches(lambda sides: sides[0]):
            for gemm in kernel.gemms:
                flops[gemm.dtype] = flops.get(gemm.dtype, 0.0) + times * gemm.flops
        return flops
