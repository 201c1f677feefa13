"""Training and evaluation of a small model on one device, with the same steps for every format."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from parallax.engine.optimizer import Adamw
from parallax.models.config import ModelConfig
from parallax.parallel.cross_entropy import cross_entropy
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import data_parallel
from parallax.studies.quality.corpus import Cloze, Corpus
from parallax.studies.quality.storing import masked, masks, rounding, seen_in_training
from parallax.workload import Workload

_AT_ONCE = 32  # windows per evaluation call
_NOTHING = np.zeros((0, 0), np.int32)


@dataclass(frozen=True)
class Curve:
    """The held-out loss during a run: nats per byte after a number of steps."""

    steps: tuple[int, ...]
    nats: tuple[float, ...]

    def steps_to(self, target: float) -> float | None:
        """Return the steps until the loss was first at most `target`, interpolated linearly."""
        for i, nats in enumerate(self.nats):
            if nats <= target:
                if i == 0:
                    return float(self.steps[0])
                before, step = self.nats[i - 1], self.steps[i - 1]
                return step + (self.steps[i] - step) * (before - target) / (before - nats)
        return None


@dataclass(frozen=True)
class Looked:
    """The evaluation of a model on held-out text.

    Attributes:
      nats: cross-entropy per byte of every window, [n].
      next_byte: share of each window's bytes that the model found likeliest, [n].
      logits: [n, L, V] float32.
    """

    nats: np.ndarray
    next_byte: np.ndarray
    logits: np.ndarray = field(repr=False)

    @property
    def best(self) -> np.ndarray:
        """The likeliest next bytes, [n, L - 1]."""
        return self.logits[:, :-1].argmax(-1)


class Bench:
    """A model, a corpus and a device, with compiled steps that all measurements share.

    Args:
      config: a model in float32, without experts.
      corpus: the text, as bytes.
      batch, seq_len: sizes of a training step; evaluation windows have seq_len bytes.
    """

    def __init__(self, config: ModelConfig, corpus: Corpus, batch: int, seq_len: int):
        self.config, self.corpus, self.batch, self.seq_len = config, corpus, batch, seq_len
        strategy = data_parallel(1)
        self.mesh = strategy.mesh.build(jax.devices()[:1])
        self.sharded = ShardedTransformer(config, strategy, Workload(batch, seq_len))
        # One sharding for all arguments and results: another one would compile programs again.
        self._sharding = NamedSharding(self.mesh, PartitionSpec())
        self._step = functools.cache(self._make_step)
        self._logits: dict[ModelConfig, Callable[..., jax.Array]] = {}

    def init(self, seed: int) -> nnx.State:
        """Draw random weights."""
        return self.sharded.init(jax.random.key(seed), self.mesh)

    def fit(
        self, params: nnx.State, steps: int, optimizer: Adamw, *,
        formats: tuple[str, str] | None = None, seed: int = 0, look_every: int = 0,
        windows: np.ndarray = _NOTHING,
        on_step: Callable[[int, float], None] = lambda n, x: None,
    ) -> tuple[nnx.State, Curve]:  # fmt: skip
        """Train for at least one step, and evaluate the held-out loss at intervals.

        Args:
          params: initial parameters; they stay usable.
          formats: formats to train through, see `seen_in_training`: sparse matrices keep the
            largest weights of `params`. None is the plain model.
          seed: seed of the batches: equal seeds give equal batches.
          look_every: steps between evaluations; 0 is never.
          windows: evaluation windows.

        Returns:
          The parameters, masks applied (compressing them gives their format), and the curve.

        Raises:
          ValueError: a loss that is not finite.
        """
        see = seen_in_training(rounding(formats))
        run, start = self._step(steps, optimizer, rounding(formats))
        kept = self._shard(masks(params, formats or ("float16", "float16")))
        # Steps donate their arguments.
        params = self._shard(jax.tree.map(jnp.copy, params))
        opt_state = start(params)
        rng = np.random.default_rng(seed)
        looks: list[tuple[int, float]] = []
        loss: Any = 0.0
        for done in range(1, steps + 1):
            tokens = self.corpus.batch(rng, self.batch, self.seq_len)
            params, opt_state, loss = run(params, opt_state, kept, self._shard(tokens))
            on_step(done, loss)
            if look_every and done % look_every == 0:
                looks.append((done, float(self.look(see(params, kept), windows).nats.mean())))
        if not np.isfinite(float(loss)):
            raise ValueError(f"training diverged: loss {float(loss)}. Use fewer or other steps.")
        curve = Curve(tuple(n for n, _ in looks), tuple(x for _, x in looks))
        return masked(params, kept), curve

    def look(
        self, params: nnx.State, windows: np.ndarray, config: ModelConfig | None = None
    ) -> Looked:
        """Evaluate a model on held-out windows [n, L]; `config` if it is stored compressed."""
        logits = self.logits(params, windows, config)
        right = logits[:, :-1].argmax(-1) == windows[:, 1:]
        return Looked(self._nats(logits, windows).mean(1), right.mean(1), logits)

    def answer(
        self, params: nnx.State, task: Cloze, config: ModelConfig | None = None
    ) -> np.ndarray:
        """Return 1 per item if its own continuation is the likeliest of four, else 0; [items]."""
        items, choices, length = task.candidates.shape
        rows = task.candidates.reshape(items * choices, length)
        nats = self._nats(self.logits(params, rows, config), rows)[:, -task.continuation :].sum(1)
        nats = nats.reshape(items, choices)
        return (nats[:, :1] < nats[:, 1:]).all(1).astype(float)

    def logits(
        self, params: nnx.State, windows: np.ndarray, config: ModelConfig | None = None
    ) -> np.ndarray:
        """Compute the logits of windows [n, L]: [n, L, V] float32."""
        config = config or self.config
        if config not in self._logits:
            sharded = ShardedTransformer(
                config, self.sharded.strategy, Workload(_AT_ONCE, self.seq_len)
            )
            self._logits[config] = jax.jit(sharded.forward(self.mesh, "all"))
        params, parts = self._shard(params), []
        for first in range(0, len(windows), _AT_ONCE):
            rows = windows[first : first + _AT_ONCE]
            padded = np.zeros((_AT_ONCE, self.seq_len), np.int32)  # one shape, one program
            padded[: len(rows)] = rows
            parts.append(np.asarray(self._logits[config](params, self._shard(padded)))[: len(rows)])
        return np.concatenate(parts)

    def _shard(self, tree: Any) -> Any:
        return jax.device_put(tree, self._sharding)

    @staticmethod
    def _nats(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Compute the cross-entropy of each next byte, [n, L - 1]."""
        return np.concatenate(
            [
                np.asarray(cross_entropy(jnp.asarray(logits[i : i + 64, :-1]),
                                         jnp.asarray(tokens[i : i + 64, 1:])))
                for i in range(0, len(tokens), 64)
            ]
        )  # fmt: skip

    def _make_step(self, steps: int, optimizer: Adamw, rounded: tuple[str, str] | None):
        """Return a jitted step, and the function that makes its optimizer's initial state."""
        transform = optimizer.build(steps)
        loss = self.sharded.loss(self.mesh)
        see = seen_in_training(rounded)

        def of_params(params, kept, tokens):
            return loss(see(params, kept), tokens)

        @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=self._sharding)
        def run(params: Any, opt_state, kept, tokens):
            value, grads = jax.value_and_grad(of_params)(params, kept, tokens)
            updates, opt_state = transform.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        return run, jax.jit(transform.init, out_shardings=self._sharding)
