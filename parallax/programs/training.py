"""The training step of a Transformer under a strategy: loss, gradients and optimizer."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.models.config import ITEM_BYTES
from parallax.models.weights import cast
from parallax.parallel.gradients import Precision
from parallax.parallel.remat import Remat, check_remat
from parallax.programs.gradient_sums import gather_parameters
from parallax.programs.optimizer_state import state_shardings
from parallax.programs.schedule_branches import training_schedule
from parallax.programs.sharded_model import ShardedTransformer

LEARNING_RATE = 3e-4


class TrainState(NamedTuple):
    """The state of training: parameters, and the optimizer's state in the same shardings."""

    params: nnx.State
    opt_state: Any


@dataclass(frozen=True)
class TrainStep:
    """One step of an optimizer, for one workload.

    Attributes:
      sharded: the model under a strategy.
      optimizer: any optax transformation whose state has one value per weight, masked or not,
        beside settings such as counts. `shardings` names what it cannot split.
      remat: what the backward pass of each layer recomputes: "none"; "attention", all but matrix
        products; or "layer", all but attention's result, for one more forward pass of work.
      param_dtype: dtype of parameters, gradients and optimizer state; layers are cast to the
        model's dtype as they are used, and gradients of microbatches add up in param_dtype.

      Raises:
        ValueError: a model with compressed weights, sizes that do not divide, or an unknown remat.
    """

    sharded: ShardedTransformer
    optimizer: optax.GradientTransformation = field(
        default_factory=functools.partial(optax.adamw, LEARNING_RATE)
    )
    remat: Remat = "layer"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.sharded.config.compression is not None:
            raise ValueError(
                f"TrainStep: model '{self.sharded.config.name}' stores its weights compressed "
                f"({', '.join(self.sharded.config.compression)}), and integers have no gradient. "
                "Train config.replace(compression=None), then compress."
            )
        check_remat(self.remat)
        _ = self.sharded.optimizer_specs  # of dims that divide
        try:
            training_schedule(self.sharded)
        except ValueError as error:
            raise ValueError(f"Strategy '{self.sharded.strategy.name}': {error}") from None

    @property
    def param_bytes(self) -> int:
        """The bytes of one parameter, and of its gradient."""
        return ITEM_BYTES[self.param_dtype]

    @property
    def passes(self) -> int:
        """The number of times that one step reads the weights forward, to recompute included."""
        return 1 if self.remat == "none" else 2

    def shardings(self, mesh) -> TrainState:
        """Return the NamedShardings; the optimizer's state has those of `optimizer_specs`."""
        to_sharding = functools.partial(NamedSharding, mesh)
        params = jax.tree.map(to_sharding, self.sharded.specs)
        of_state = jax.tree.map(to_sharding, self.sharded.optimizer_specs)
        shapes, replicated = self._shapes, to_sharding(PartitionSpec())
        return TrainState(
            params, state_shardings(shapes.opt_state, shapes.params, of_state, replicated)
        )

    @property
    def _shapes(self) -> TrainState:
        params = jax.eval_shape(self._cast, self.sharded.shapes)
        return TrainState(params, jax.eval_shape(self.optimizer.init, params))

    def abstract_state(self, mesh) -> TrainState:
        """Return the shapes of the state with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self._shapes, self.shardings(mesh),
        )  # fmt: skip

    def init(self, key: jax.Array, mesh) -> TrainState:
        """Initialise the state in place: every device makes only its own shards."""
        return self.start(self.sharded.init(key, mesh), mesh)

    def start(self, params: nnx.State, mesh) -> TrainState:
        """Return the state before the first step, from parameters that are already sharded."""

        def make(params):
            params = self._cast(params)
            return TrainState(params, self.optimizer.init(params))

        return jax.jit(make, out_shardings=self.shardings(mesh))(params)

    def gradients(self, mesh) -> Callable[..., tuple[jax.Array, nnx.State]]:
        """Return the function (params, *inputs) -> mean loss, gradients; to be jitted.

        The gradients are laid out as the optimizer's state is.
        """
        return self.sharded.gradients(mesh, self.remat, Precision(self.param_dtype))

    def step(self, mesh) -> Callable[..., tuple[TrainState, jax.Array]]:
        """Return the function (state, *inputs) -> next state, loss; see also `whole_step`.

        Jit it with `donate_argnums=0` and `out_shardings=(step.shardings(mesh), None)`.

        Cost: `communication.train_transfers`.
        """
        whole = self.whole_step(mesh)

        def run(state: TrainState, *inputs: jax.Array):
            state, (loss, _) = whole(state, *inputs)
            return state, loss

        return run

    def whole_step(self, mesh) -> Callable[..., tuple[TrainState, tuple[jax.Array, jax.Array]]]:
        """Return the function (state, *inputs) -> next state, (loss, L2 norm of the gradients).

        It is `step` with the gradients' norm, before any clipping.
        """
        gradients = self.gradients(mesh)
        shard, gather = self._to_optimizer(mesh)

        def run(state: TrainState, *inputs: jax.Array):
            loss, grads = gradients(state.params, *inputs)
            params = shard(state.params)
            updates, opt_state = self.optimizer.update(grads, state.opt_state, params)
            params: Any = optax.apply_updates(params, updates)
            return TrainState(gather(params), opt_state), (loss, optax.tree.norm(grads))

        return run

    def _to_optimizer(self, mesh) -> tuple[Callable, Callable]:
        """Return the functions that lay parameters out as the optimizer's state, and back.

        Cost: back, an all-gather of what the state shards further than the parameters (ZeRO-1).
        """
        specs, of_state = self.sharded.specs, self.sharded.optimizer_specs
        if specs == of_state:
            return lambda params: params, lambda params: params

        def shard(params):
            return jax.tree.map(
                lambda w, spec: lax.with_sharding_constraint(w, NamedSharding(mesh, spec)),
                params, of_state,
            )  # fmt: skip

        gather = jax.shard_map(
            functools.partial(gather_parameters, strategy=self.sharded.strategy),
            mesh=mesh, in_specs=(of_state,), out_specs=specs, check_vma=True,
        )  # fmt: skip
        return shard, gather

    def weight_bytes(self) -> float:
        """Return the bytes of parameters that a device reads or writes in one step.

        Every pass reads its layers once per tick, the backward pass twice (for both of its
        products); the optimizer reads parameters, gradients and state, and writes them.
        """
        sharded = self.sharded
        wide = self.param_bytes / sharded.config.item_bytes
        state = jax.tree.map(
            lambda x, s: x.dtype.itemsize * _size(s.shard_shape(x.shape)),
            self._shapes, self.shardings(sharded.strategy.mesh.abstract()),
        )  # fmt: skip
        return (self.passes + 2) * wide * sharded.weight_bytes() + 3.0 * sum(jax.tree.leaves(state))

    def _cast(self, params: nnx.State) -> nnx.State:
        return cast(params, self.param_dtype)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
