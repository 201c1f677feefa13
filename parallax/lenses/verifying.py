"""The verify lens: logits and gradients of a strategy against the unsharded model, on real text.

The reference is the model on one device with textbook attention, in float64. Parameters are drawn
in the lower dtype and cast up, so that every dtype computes the same function.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.stages import Compiled, Lowered

from parallax.lenses.ahead import compiled_ahead
from parallax.lenses.child import Progress
from parallax.lenses.reference import reference
from parallax.lenses.text import byte_tokens, line_segments
from parallax.lenses.tolerance import judge
from parallax.models.config import ModelConfig
from parallax.models.transformer import abstract_transformer
from parallax.models.weights import cast
from parallax.parallel.cross_entropy import cross_entropy, next_token_labels
from parallax.parallel.experts import load_balancing_loss
from parallax.parallel.gradients import Precision
from parallax.programs.sharded_model import ShardedTransformer, input_shapes
from parallax.results.lens_results import Exactness, Verification
from parallax.results.router_facts import RouterFacts
from parallax.strategy import Strategy
from parallax.workload import Workload

# float16 gradients of a mean loss underflow; scaling by a power of two changes no ratio.
_LOSS_SCALE = {"float16": 1024.0}
# A float64 gradient whose norm is this small beside that of all gradients is rounding error.
_ROUNDING = 1e-12


def verify_transformer(
    config: ModelConfig,
    cases: Sequence[tuple[Strategy, Workload]],
    text: bytes,
    text_name: str,
    dtypes: Sequence[str],
    *,
    on_progress: Progress = lambda line: None,
) -> list[Verification]:
    """Compare every strategy with the unsharded model; needs enough devices, and float64 enabled.

    Args:
      config: a model that fits one device.
      cases: strategies, each with the workload it runs; all have the same batch and length.
      text: at least batch x seq_len bytes.
      text_name: name of the text, for the report.
      dtypes: dtypes to compare in, "float64" first.

    Returns:
      One Verification per case.
    """
    first = cases[0][1]
    tokens = byte_tokens(text, first.batch, first.seq_len)
    inputs = (tokens, line_segments(tokens)) if first.packed else (tokens,)
    lowest = next((d for d in dtypes if d != "float64"), "float64")
    of_dtype = {d: config.replace(dtype=d) for d in ("float64", *dtypes)}
    # Near-ties flip in lower precision, so there the float64 reference's routing is fixed.
    replays = {d: bool(config.num_experts) and d != "float64" for d in of_dtype}
    drawn = draw(of_dtype[lowest])
    steps = [_reference(c, drawn, replace(first, replayed=replays[d])) for d, c in of_dtype.items()]
    if config.compression is not None:
        plain = config.replace(compression=None)
        dense = draw(plain.replace(dtype=lowest))
        steps.append(_reference(plain.replace(dtype="float64"), dense, first))
    for strategy, workload in cases:
        loads = {d: replace(workload, replayed=replays[d]) for d in dtypes}
        programs = [ShardedTransformer(of_dtype[d], strategy, loads[d]) for d in dtypes]
        steps += [_sharded(program, drawn) for program in programs]
    results = _run(steps, inputs)
    references: dict[str, _Result] = {}
    for dtype in of_dtype:
        on_progress(f"unsharded model in {dtype}")
        references[dtype] = next(results)
    exact = references["float64"]
    off_dense = None
    if config.compression is not None:
        on_progress("the dense model")
        off_dense = relative_error(exact.logits, next(results).logits)
    verified = []
    number, total = itertools.count(1), len(cases) * len(dtypes)
    for strategy, workload in cases:
        start = time.perf_counter()
        found: dict[str, _Result] = {}
        for dtype in dtypes:
            on_progress(f"{next(number)} of {total}: {strategy.name} in {dtype}")
            found[dtype] = next(results)
        verified.append(
            Verification(
                model=config.name,
                devices=strategy.mesh.size,
                platform=jax.devices()[0].platform,
                workload=workload,
                text=text_name,
                logit_rms=float(np.sqrt(np.mean(np.square(exact.logits)))),
                rows=tuple(_judged(d, found[d], references[d], exact) for d in dtypes),
                seconds=time.perf_counter() - start,
                approximation=strategy.approximation,
                router=_router_facts(exact, found),
                off_dense=off_dense,
            )
        )
    return verified


class _Result(NamedTuple):
    """What a step computes: logits and gradients in float64; the routing is () without experts."""

    logits: np.ndarray
    gradients: Any
    routing: Any


class _Step(NamedTuple):
    """One program to compare: a step (trained, stored, *inputs) -> gradients, (logits, routing).

    Attributes:
      function: the jitted step.
      shapes: of its state, and of its inputs.
      place: makes the state.
      replayed: its last input is a fixed routing.
      scale: factor of the gradients.
      unshard: returns gradients as those of the unsharded model.
    """

    function: Any
    shapes: tuple[nnx.State, tuple[jax.ShapeDtypeStruct, ...]]
    place: Callable[[], nnx.State]
    replayed: bool
    scale: float
    unshard: Callable[[Any], Any] = lambda gradients: gradients

    def lower(self) -> Lowered:
        state, inputs = self.shapes
        return self.function.lower(*_trained(state), *inputs)

    def run(self, program: Compiled, inputs) -> _Result:
        gradients, (logits, routing) = jax.device_get(program(*_trained(self.place()), *inputs))
        gradients = self.unshard(gradients)
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64) / self.scale, gradients)
        return _Result(np.asarray(logits, np.float64), wide, routing)


def _run(steps: Sequence[_Step], inputs: tuple[np.ndarray, ...]) -> Iterator[_Result]:
    """Run the steps in order; the first is the float64 reference, whose routing others replay."""
    fixed_ids: tuple[np.ndarray, ...] = ()
    with contextlib.closing(compiled_ahead([step.lower for step in steps])) as programs:
        for step, program in zip(steps, programs, strict=True):
            result = step.run(program, (*inputs, *(fixed_ids if step.replayed else ())))
            if step is steps[0]:
                fixed_ids = tuple(result.routing[1:])
            yield result


def _judged(dtype: str, found: _Result, own: _Result, exact: _Result) -> Exactness:
    logits, own_logits = (relative_error(x.logits, exact.logits) for x in (found, own))
    gradients, own_gradients = (worst_error(x.gradients, exact.gradients) for x in (found, own))
    return judge(dtype, logits, gradients, own_logits, own_gradients)


def _router_facts(exact: _Result, found: Mapping[str, _Result]) -> RouterFacts | None:
    if not exact.routing:
        return None
    stats, ids = exact.routing
    load = np.asarray(stats.tokens_E, float)
    *_, last = found.values()
    return RouterFacts(
        smallest_margin=float(stats.smallest_margin.min()),
        load_max_over_mean=float((load.max(-1) / load.mean(-1)).max()),
        dropped=float(last.routing.dropped.sum() / load.sum()),
        flips={d: float(x.routing.flips.sum() / ids.size)
               for d, x in found.items() if d != "float64"},
    )  # fmt: skip


def draw(config: ModelConfig) -> nnx.State:
    """Draw a model's parameters, the same for the same config."""
    return _drawing(config)()


@functools.lru_cache(maxsize=8)
def _drawing(config: ModelConfig) -> Callable[[], nnx.State]:
    """Return the jitted drawing, traced and compiled once for all who draw the same model."""
    from parallax.models.transformer import Transformer

    @jax.jit
    def make():
        with nnx.use_eager_sharding(False):
            return nnx.split(Transformer(config, rngs=nnx.Rngs(params=0)))[1]

    return make


def _reference(config: ModelConfig, drawn: nnx.State, workload: Workload) -> _Step:
    graph = abstract_transformer(config)[0]
    scale = _LOSS_SCALE.get(config.dtype, 1.0)

    def loss(trained, stored, tokens, *more):
        segment_ids, *fixed_ids = more if workload.packed else (None, *more)
        state = nnx.merge_state(trained, stored)
        logits, routing = reference(nnx.merge(graph, state), tokens, segment_ids, *fixed_ids)
        labels, weights = next_token_labels(tokens, segment_ids)
        losses = cross_entropy(logits, labels)
        weights = weights.astype(losses.dtype)
        mean = (losses * weights).sum() / weights.sum()
        if routing:
            k = config.experts_per_token
            balance = jax.vmap(lambda s: load_balancing_loss(s, tokens.size, k))(routing[0])
            mean = mean + (config.load_balance * balance.sum()).astype(mean.dtype)
        return mean * jnp.asarray(scale, mean.dtype), (logits, routing)

    def place() -> nnx.State:
        return cast(drawn, config.dtype)

    shapes = jax.eval_shape(place), input_shapes(config, workload)
    step = jax.jit(jax.grad(loss, has_aux=True))
    return _Step(step, shapes, place, workload.replayed, scale)


def _sharded(program: ShardedTransformer, drawn: nnx.State) -> _Step:
    mesh = program.strategy.mesh.build(jax.devices()[: program.strategy.mesh.size])
    scale = _LOSS_SCALE.get(program.config.dtype, 1.0)
    precision = Precision(program.config.dtype, scale)
    differentiated = program.gradients_and_logits(mesh, "layer", precision)

    def step(trained, stored, *inputs):
        _, gradients, logits, routing = differentiated(nnx.merge_state(trained, stored), *inputs)
        return gradients, (logits, routing)

    def place() -> nnx.State:
        return placed(program, mesh, cast(drawn, program.config.dtype))

    shapes = program.abstract_state(mesh), program.abstract_inputs(mesh)
    replayed = program.workload.replayed
    return _Step(jax.jit(step), shapes, place, replayed, scale, program.unshard)


def placed(program: ShardedTransformer, mesh, state: nnx.State) -> nnx.State:
    """Return a model's parameters, padded and sharded over a mesh."""
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), program.specs)
    # Sharded by the jit itself, XLA's partitioner takes seconds; and what lies on one device JAX
    # takes apart with a program per shape and sharding, but what lies on the host with none.
    return jax.device_put(jax.device_get(jax.jit(program.shard)(state)), shardings)


def _trained(state: nnx.State) -> tuple[nnx.State, ...]:
    """Split a state into the parameters that have gradients and the compressed weights."""
    return nnx.split_state(state, nnx.Param, ...)


def relative_error(found: np.ndarray, exact: np.ndarray, least: float = 0.0) -> float:
    """Compute the relative L2 error: |found - exact| over |exact|, or over `least` if larger.

    The error is 0 where nothing differs and infinite where anything is not finite.
    """
    difference = float(np.linalg.norm(found - exact))
    size = max(float(np.linalg.norm(exact)), least)
    if difference == 0.0:
        return 0.0
    error = difference / size if size else float("inf")
    return error if np.isfinite(error) else float("inf")


def worst_error(found: Any, exact: Any) -> float:
    """Compute the largest relative L2 error over all parameters' gradients."""
    return max(parameter_errors(jax.tree.leaves(found), jax.tree.leaves(exact)))


def parameter_errors(
    found: Sequence[np.ndarray],
    exact: Sequence[np.ndarray],
    own: Sequence[np.ndarray] | None = None,
    dtype: str = "float64",
) -> list[float]:
    """Compute the relative L2 error of every parameter's gradient.

    A gradient that is 0 up to rounding (a key bias shifts all scores of a query alike) is judged
    relative to all gradients together: in float64 one that is smaller than rounding errors are,
    in a lower dtype also one that the unsharded model itself does not resolve there, with an error
    above the square root of the dtype's epsilon (less than half of its digits are right).

    Args:
      found, exact: gradients, and the same of the unsharded model in float64.
      own: the gradients of the unsharded model in `dtype`; None if they are `exact`.
      dtype: the dtype that `found` is computed in.
    """
    resolved = float(jnp.finfo(dtype).eps) ** 0.5
    whole = float(np.linalg.norm([np.linalg.norm(x) for x in exact]))

    def error(a, b, c):
        is_zero = np.linalg.norm(b) <= _ROUNDING * whole or relative_error(c, b) > resolved
        return relative_error(a, b, whole if is_zero else 0.0)

    return list(map(error, found, exact, exact if own is None else own))
