"""The verify lens for a user module: its output, and the gradient of a projection of it.

The module's floating-point state is cast to float64. What it still computes in a narrower dtype is
its own choice, and then the narrowest is judged, as for the library's own model: against the same
function in float64, by the unsharded module's own error. A module that float64 parameters make mix
dtypes (the carry of a scan) runs as it is made.
"""

import contextlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from parallax.lenses.child import Progress
from parallax.lenses.narrow_dtypes import NarrowDtype, narrow_dtypes, widened
from parallax.lenses.text import byte_tokens
from parallax.lenses.tolerance import judge
from parallax.lenses.users_errors import named_with_its_line
from parallax.lenses.verifying import parameter_errors, relative_error
from parallax.programs.module_kinds import UserModule
from parallax.programs.user_module import ShardedModule
from parallax.results.lens_results import Exactness, Verification
from parallax.strategy import Strategy
from parallax.workload import Workload

_SHOWN = 4


def verify_module(
    construct,
    strategy: Strategy,
    workload: Workload,
    text: bytes,
    text_name: str,
    *,
    on_progress: Progress = lambda line: None,
) -> Verification:
    """Compare a user module under a strategy with itself on one device, in float64.

    A module that casts down inside is judged at the narrowest dtype that it computes in, against
    itself in float64.
    """
    start = time.perf_counter()
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    tokens = jnp.asarray(byte_tokens(text, workload.batch, workload.seq_len))
    try:
        run = _start(construct, strategy, workload, mesh, tokens, "float64", on_progress)
    except TypeError:
        # Float64 parameters may meet what the module casts to float32, as in a scan's carry.
        with jax.enable_x64(False), named_with_its_line("verify"):
            run = _start(construct, strategy, workload, mesh, tokens, "its own dtypes", on_progress)
    program, module, notes, arguments = run.program, run.program.module, run.notes, run.arguments
    trained, rest, tokens, weights = arguments
    traced, own, paths = run.traced, run.own, run.paths
    narrow = narrow_dtypes(traced.jaxpr, paths)
    exact = own
    if narrow:
        wide = jax.jit(widened(traced.jaxpr))(*jax.tree.leaves(arguments))
        exact = jax.tree.unflatten(jax.tree.structure(own), jax.device_get(wide))
    dtype = narrow[0].dtype if narrow else "float64"
    on_progress(f"{strategy.name} in {dtype}")
    shardings = _split(module, jax.tree.map(lambda p: NamedSharding(mesh, p), program.specs))
    placed = jax.tree.map(jax.device_put, (trained, rest), shardings)
    step = _projected(module, program.forward(mesh))
    step = jax.jit(step, out_shardings=(shardings[0], None))
    with contextlib.nullcontext() if run.is_widened else jax.enable_x64(False):
        found = jax.device_get(step(*placed, tokens, weights))
    row = _judged(dtype, found, exact, own, paths)
    return Verification(
        model=program.name,
        devices=strategy.mesh.size,
        platform=jax.devices()[0].platform,
        workload=workload,
        text=text_name,
        logit_rms=float(np.sqrt(np.mean(np.square(np.asarray(exact[1], np.float64))))),
        rows=(row,),
        seconds=time.perf_counter() - start,
        notes=(
            *_vacuous(exact[1], own[1]), *_failures(row, module),
            *(_in_words(n, module) for n in narrow), *notes,
        ),
    )  # fmt: skip


class _Run(NamedTuple):
    """A module on one device: its program, arguments and results.

    `own` is (gradients, output); `is_widened` whether its parameters were made float64.
    """

    program: ShardedModule
    arguments: tuple
    traced: Any
    own: Any
    paths: list[str]
    notes: tuple[str, ...]
    is_widened: bool


def _start(
    construct, strategy: Strategy, workload: Workload, mesh, tokens: jax.Array, dtypes: str,
    on_progress: Progress,
) -> _Run:  # fmt: skip
    """Run a module on one device, with parameters of float64 or as it is made.

    Raises:
      TypeError: the module mixes dtypes, or is wrong.
    """
    program = ShardedModule(construct, strategy, workload)
    module, is_widened = program.module, dtypes == "float64"
    on_progress("making the module")
    made = program.init()
    trained, rest = _split(module, jax.tree.map(_widen, made) if is_widened else made)
    paths = [leaf.path for leaf in module.leaves if leaf.is_trained]
    on_progress(f"unsharded module in {dtypes}")
    out = _output_shape(program, mesh, _join(module, trained, rest), tokens)
    weights = jax.random.normal(jax.random.key(1), out.shape, float).astype(out.dtype)
    arguments = trained, rest, tokens, weights
    traced = jax.jit(_projected(module, program.reference)).trace(*arguments)
    own = jax.device_get(traced.lower().compile()(*arguments))
    return _Run(program, arguments, traced, own, paths, program.notes, is_widened)


def _vacuous(exact: np.ndarray, own: np.ndarray) -> list[str]:
    """Say that the unsharded module's output is one that no comparison says anything of."""
    if not (np.isfinite(exact).all() and np.isfinite(own).all()):
        return ["the output is not finite on one device: nothing can be compared"]
    if not np.any(exact):
        return ["the output is 0 everywhere: nothing of the module is verified"]
    return []


def _output_shape(program: ShardedModule, mesh, state: Any, tokens: jax.Array) -> Any:
    """Return the shape of the output; ValueError if it is another one on the mesh."""
    whole = jax.eval_shape(program.reference, state, tokens)
    found = jax.eval_shape(program.forward(mesh), state, tokens)
    if (found.shape, found.dtype) != (whole.shape, whole.dtype):
        raise ValueError(
            f"verify: {program.name} returns {found.dtype}{list(found.shape)} on the mesh and "
            f"{whole.dtype}{list(whole.shape)} on one device. Look for a shard_map inside whose "
            "out_specs do not give the whole array."
        )
    return whole


def _judged(dtype: str, found, exact, own, paths: list[str]) -> Exactness:
    """Judge (gradients, output) of the sharded module; `own` are the unsharded module's."""

    def logits_error(out):
        return relative_error(np.asarray(out, np.float64), np.asarray(exact[1], np.float64))

    if not paths:
        return judge(dtype, logits_error(found[1]), None, logits_error(own[1]))
    errors = parameter_errors(found[0], exact[0], own[0], dtype)
    worst = int(np.argmax(errors))
    return judge(
        dtype, logits_error(found[1]), errors[worst],
        logits_error(own[1]), max(parameter_errors(own[0], exact[0], own[0], dtype)),
        paths[worst],
    )  # fmt: skip


def _split(module: UserModule, tree: Any) -> tuple[list, list]:
    """Split a tree like the state into the leaves of parameters and the others."""
    leaves = list(zip(module.leaves, jax.tree.leaves(tree), strict=True))
    return [x for leaf, x in leaves if leaf.is_trained], [
        x for leaf, x in leaves if not leaf.is_trained
    ]


def _join(module: UserModule, trained: list, rest: list) -> Any:
    """Join what `_split` returned into a state."""
    parts = {True: iter(trained), False: iter(rest)}
    leaves = [next(parts[leaf.is_trained]) for leaf in module.leaves]
    return jax.tree.unflatten(jax.tree.structure(module.shapes), leaves)


def _widen(x):
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _projected(module: UserModule, forward):
    """Return a function giving (gradients of a projection of the output, output).

    The projection's weights are an argument, so that the function rounds where the module does and
    nowhere else. They are not divided by their number, which would underflow in float16.
    """

    def step(trained, rest, tokens, weights):
        run = lambda trained: forward(_join(module, trained, rest), tokens)  # noqa: E731
        out, pull_back = jax.vjp(run, trained)
        return pull_back(weights)[0], out

    return step


def _failures(row: Exactness, module: UserModule) -> list[str]:
    """Return one line for each error above its limit, with the worst parameter."""
    lines = []
    if not row.logits_error <= row.logits_limit:
        lines.append(
            f"not exact in {row.dtype}: error of the output {row.logits_error:.2g}, limit "
            f"{row.logits_limit:.2g}"
        )
    if row.gradients_error is not None:
        shapes = {leaf.path: leaf.shape for leaf in module.leaves}
        is_worse = not row.gradients_error <= (row.gradients_limit or 0.0)
        if is_worse or lines:
            lines.append(
                f"{'not exact' if is_worse else 'worst gradient'} in {row.dtype}: error of the "
                f"gradient of {row.worst_parameter} ({shapes[row.worst_parameter].dtype}) "
                f"{row.gradients_error:.2g}, limit {row.gradients_limit:.2g}"
            )
    return lines


def _in_words(narrow: NarrowDtype, module: UserModule) -> str:
    """Return one line on a dtype below float64 that the module computes in, and where."""
    origins: dict[str, None] = {}
    for path in narrow.parameters:
        owners = [p for p in module.part_dtypes if path.rpartition("/")[0] == p[0]]
        named = [
            f"params of {p[0] or module.name} ({p[1]} dtype={p[2]})"
            for p in owners
            if p[2] == narrow.dtype
        ]
        origins[named[0] if named else path] = None
    shown = list(origins or narrow.lines)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"computes in {narrow.dtype}: {', '.join(shown[:_SHOWN])}{more}"
