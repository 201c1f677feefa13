"""A training step of a Transformer under a strategy: loss, gradients, optimizer."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from parallax.models.config import ITEM_BYTES
from parallax.parallel.split import Remat
from parallax.programs.sharded_model import ShardedTransformer

LEARNING_RATE = 3e-4


class TrainState(NamedTuple):
    """What a step reads and writes: parameters, and the optimizer's state of the same shardings."""

    params: nnx.State
    opt_state: Any


@dataclass(frozen=True)
class TrainStep:
    """One step of an optimizer, for one workload.

    Attributes:
      sharded: the model under a strategy.
      optimizer: any optax transformation that works leaf by leaf.
      remat: what the backward pass recomputes: "none"; "microbatch", of which only the first
        layer's input is kept; or "layer", which then also recomputes each layer on its own, for one
        more forward pass of work.
      param_dtype: of parameters, gradients and optimizer state; layers are cast to the model's
        dtype as they are used, so gradients of microbatches add up in param_dtype.
    """

    sharded: ShardedTransformer
    optimizer: optax.GradientTransformation = field(
        default_factory=functools.partial(optax.adamw, LEARNING_RATE)
    )
    remat: Remat = "microbatch"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.sharded.config.compression is not None:
            raise ValueError(
                f"TrainStep: model '{self.sharded.config.name}' stores its weights compressed "
                f"({', '.join(self.sharded.config.compression)}), and integers have no gradient. "
                "Train config.replace(compression=None), then compress."
            )

    @property
    def param_bytes(self) -> int:
        """Bytes of one parameter, and of its gradient."""
        return ITEM_BYTES[self.param_dtype]

    @property
    def passes(self) -> int:
        """Forward passes that one step runs: one, and what is recomputed."""
        return {"none": 1, "microbatch": 2, "layer": 3}[self.remat]

    def shardings(self, mesh) -> TrainState:
        """NamedShardings: a parameter's are also its gradient's and its optimizer state's."""
        to_sharding = functools.partial(NamedSharding, mesh)
        params = jax.tree.map(to_sharding, self.sharded.specs)
        opt_state = optax.tree_utils.tree_map_params(
            self.optimizer, lambda _, sharding: sharding, self._shapes.opt_state, params,
            transform_non_params=lambda _: to_sharding(PartitionSpec()),
        )  # fmt: skip
        return TrainState(params, opt_state)

    @property
    def _shapes(self) -> TrainState:
        params = jax.eval_shape(self._cast, self.sharded.shapes)
        return TrainState(params, jax.eval_shape(self.optimizer.init, params))

    def abstract_state(self, mesh) -> TrainState:
        """Shapes with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self._shapes, self.shardings(mesh),
        )  # fmt: skip

    def init(self, key: jax.Array, mesh) -> TrainState:
        """Parameters and optimizer state, made in place: every device makes only its shards."""
        return self.start(self.sharded.init(key, mesh), mesh)

    def start(self, params: nnx.State, mesh) -> TrainState:
        """The state before the first step, from parameters already laid out by `place`."""

        def make(params):
            params = self._cast(params)
            return TrainState(params, self.optimizer.init(params))

        return jax.jit(make, out_shardings=self.shardings(mesh))(params)

    def gradients(self, mesh) -> Callable[..., tuple[jax.Array, nnx.State]]:
        """(params, tokens, segment_ids if packed) -> mean loss and its gradients, to be jitted."""
        exact = jax.value_and_grad(self.sharded.loss(mesh, self.remat))

        def run(params: nnx.State, *inputs: jax.Array) -> tuple[jax.Array, nnx.State]:
            loss, grads = exact(params, *inputs)
            return loss, self.sharded.zero_padding(grads)

        return run

    def step(self, mesh) -> Callable[..., tuple[TrainState, jax.Array]]:
        """(state, tokens, segment_ids if packed) -> the next state and the loss. See `whole_step`.

        Jit it with `donate_argnums=0` and `out_shardings=(step.shardings(mesh), None)`.

        Cost: `communication.train_transfers`.
        """
        whole = self.whole_step(mesh)

        def run(state: TrainState, *inputs: jax.Array):
            state, (loss, _) = whole(state, *inputs)
            return state, loss

        return run

    def whole_step(self, mesh) -> Callable[..., tuple[TrainState, tuple[jax.Array, jax.Array]]]:
        """As `step`, with the gradients' L2 norm (before any clipping) beside the loss."""
        gradients = self.gradients(mesh)

        def run(state: TrainState, *inputs: jax.Array):
            loss, grads = gradients(state.params, *inputs)
            updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
            params: Any = optax.apply_updates(state.params, updates)
            return TrainState(params, opt_state), (loss, optax.tree.norm(grads))

        return run

    def weight_bytes(self) -> float:
        """Bytes of parameters a device reads or writes in one step: every pass reads its layers
        once a tick, the backward pass twice (for both of its products); the optimizer reads
        parameters, gradients and state, and writes them."""
        sharded = self.sharded
        wide = self.param_bytes / sharded.config.item_bytes
        state = jax.tree.map(
            lambda x, s: x.dtype.itemsize * _size(s.shard_shape(x.shape)),
            self._shapes, self.shardings(sharded.strategy.mesh.abstract()),
        )  # fmt: skip
        return (self.passes + 2) * wide * sharded.weight_bytes() + 3.0 * sum(jax.tree.leaves(state))

    def _cast(self, params: nnx.State) -> nnx.State:
        return jax.tree.map(lambda x: x.astype(jnp.dtype(self.param_dtype)), params)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
