"""The protocol of a step, which a prefill, a decoding step and a training step implement."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self

from parallax.bounds import Transfer, Trips
from parallax.programs.communication import ExpectedRouting
from parallax.programs.load_balance import LoadBalance
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.user_module import ShardedModule
from parallax.rules import Phase
from parallax.workload import Workload


class ModelStep(Protocol):
    """One phase of a model: the function that a call runs, its arguments and its derived figures.

    Bytes are those of one device, FLOPs and tokens those of all devices.

    Attributes:
      phase: the phase's name in records.
      donated: positions of the arguments whose memory the results may take.
    """

    phase: ClassVar[Phase]
    donated: ClassVar[tuple[int, ...]]

    @property
    @abstractmethod
    def sharded(self) -> ShardedTransformer | ShardedModule:
        """The model under its strategy; in a decoding step, with the workload of the prompts."""
        ...

    @property
    @abstractmethod
    def workload(self) -> Workload:
        """The workload of one call, in the step's own microbatches."""
        ...

    @property
    @abstractmethod
    def dtype(self) -> str:
        """The dtype of the matrix products, for a roofline."""
        ...

    @property
    @abstractmethod
    def compiler_options(self) -> Mapping[str, bool | int | str]:
        """The XLA options that a run of this step needs."""
        ...

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """The notes of a report about the derived figures."""
        ...

    @property
    @abstractmethod
    def routing(self) -> ExpectedRouting | None:
        """The data-dependent figures under uniform routing; None without experts."""
        ...

    @property
    def trips(self) -> Trips:
        """The executions of loops and branches that depend on data, by named scope."""
        return {} if self.routing is None else dict(self.routing.trips)

    @property
    @abstractmethod
    def unmodelled(self) -> str:
        """The reason why this step's time has no analytical model; "" if it has one."""
        ...

    @abstractmethod
    def with_microbatches(self, microbatches: int) -> Self:
        """Return the same step in another number of microbatches. ValueError if uneven."""
        ...

    @abstractmethod
    def function(self, mesh) -> Callable[..., Any]:
        """Return the function of whole arrays on `mesh`, to be jitted."""
        ...

    @abstractmethod
    def arguments(self, mesh) -> tuple[Any, ...]:
        """Return the function's arguments: shapes with their shardings on `mesh`."""
        ...

    @abstractmethod
    def state(self, mesh) -> Any:
        """Return the function's first argument, newly initialised on the devices of `mesh`."""
        ...

    @abstractmethod
    def transfers(self) -> tuple[Transfer, ...] | None:
        """Return one call's transfers (derived); None if XLA chooses some of its collectives."""
        ...

    @abstractmethod
    def weight_bytes(self) -> float | None:
        """Return the bytes of weights that one call reads; None if unknown."""
        ...

    @abstractmethod
    def kv_cache_bytes(self) -> float:
        """Return the bytes of the KV cache that one call reads, or that a prefill could keep."""
        ...

    @abstractmethod
    def useful_flops(self) -> float | None:
        """Return the FLOPs that the model needs, nothing repeated; None if unknown."""
        ...

    @abstractmethod
    def load_balance(self) -> LoadBalance | None:
        """Return the load balance of the step over the devices; None if unknown."""
        ...
