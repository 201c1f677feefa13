"""What a step is: the protocol that a prefill, a decoding step and a training step fulfil."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, Self

from parallax.bounds import Transfer
from parallax.programs.communication import ExpectedRouting
from parallax.programs.load_balance import LoadBalance
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.user_module import ShardedModule
from parallax.rules import Phase
from parallax.workload import Workload


class ModelStep(Protocol):
    """What a phase is: the function that one call runs, its arguments, and its derived figures.

    Bytes are of one device, FLOPs and tokens of all of them.

    Attributes:
      phase: what records call it.
      donated: positions of the arguments whose memory the results may take.
    """

    phase: ClassVar[Phase]
    donated: ClassVar[tuple[int, ...]]

    @property
    @abstractmethod
    def sharded(self) -> ShardedTransformer | ShardedModule:
        """The model under its strategy; a decoding step's with the workload of its prompts."""
        ...

    @property
    @abstractmethod
    def workload(self) -> Workload:
        """What one call runs, in the step's own microbatches."""
        ...

    @property
    @abstractmethod
    def dtype(self) -> str:
        """The dtype of the matrix products, for a roofline."""
        ...

    @property
    @abstractmethod
    def compiler_options(self) -> dict[str, bool | int]:
        """Options of XLA that a run of this step needs."""
        ...

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What a report says about the derived figures."""
        ...

    @property
    @abstractmethod
    def routing(self) -> ExpectedRouting | None:
        """What data decides in this step, under uniform routing; None without experts."""
        ...

    @property
    @abstractmethod
    def unmodelled(self) -> str:
        """Why there is no analytical model of this step's time; "" where there is one."""
        ...

    @abstractmethod
    def with_microbatches(self, microbatches: int) -> Self:
        """The same step in another number of microbatches. ValueError if it does not divide."""
        ...

    @abstractmethod
    def function(self, mesh) -> Callable[..., Any]:
        """The function of whole arrays on `mesh`, to be jitted."""
        ...

    @abstractmethod
    def arguments(self, mesh) -> tuple[Any, ...]:
        """The function's arguments: shapes with their shardings on `mesh`."""
        ...

    @abstractmethod
    def state(self, mesh) -> Any:
        """The function's first argument, drawn anew, on the devices of `mesh`."""
        ...

    @abstractmethod
    def transfers(self) -> tuple[Transfer, ...] | None:
        """What one call sends (derived); None where XLA chooses some of its collectives."""
        ...

    @abstractmethod
    def weight_bytes(self) -> float | None:
        """Bytes of weights that one call reads; None where they are not known."""
        ...

    @abstractmethod
    def kv_cache_bytes(self) -> float:
        """Bytes of the KV cache that one call reads, or that a prefill could keep."""
        ...

    @abstractmethod
    def useful_flops(self) -> float | None:
        """FLOPs that the model needs, nothing repeated; None where they are not known."""
        ...

    @abstractmethod
    def load_balance(self) -> LoadBalance | None:
        """How evenly the strategy spreads the step; None where it is not known."""
        ...
