"""The step of a user module, which XLA partitions and for which nothing is derived."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from parallax.bounds import Trips
from parallax.programs.user_module import ShardedModule
from parallax.rules import Phase
from parallax.workload import Workload


@dataclass(frozen=True)
class ModulePrefill:
    """The forward pass of a user module; `function` returns the last position."""

    sharded: ShardedModule
    phase: ClassVar[Phase] = "prefill"
    donated: ClassVar[tuple[int, ...]] = ()
    # The fastest dtype, so that the roofline is a bound for any other.
    dtype: str = field(default="bfloat16", init=False)
    routing: None = field(default=None, init=False)
    unmodelled: str = field(default="a user module has no analytical model of time", init=False)

    @property
    def workload(self) -> Workload:
        return self.sharded.workload

    @property
    def trips(self) -> Trips:
        return {}

    @property
    def compiler_options(self) -> Mapping[str, bool | int | str]:
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        return self.sharded.notes

    def with_microbatches(self, microbatches: int) -> Self:
        workload = replace(self.workload, microbatches=microbatches)
        return type(self)(replace(self.sharded, workload=workload))

    def function(self, mesh) -> Callable[..., Any]:
        return self.sharded.forward(mesh, "last")

    def arguments(self, mesh) -> tuple[Any, ...]:
        return self.sharded.abstract_state(mesh), *self.sharded.abstract_inputs(mesh)

    def state(self, mesh) -> Any:
        return self.sharded.init_sharded(mesh)

    def transfers(self) -> None:
        return None

    def weight_bytes(self) -> None:
        return None

    def kv_cache_bytes(self) -> float:
        return 0.0

    def useful_flops(self) -> None:
        return None

    def load_balance(self) -> None:
        return None
