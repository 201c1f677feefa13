"""The verify lens for a user module: its output, and the gradient of a projection of it."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from parallax.lenses.child import Progress
from parallax.lenses.text import byte_tokens
from parallax.lenses.tolerance import judge
from parallax.lenses.verifying import relative_error, worst_error
from parallax.programs.user_module import ShardedModule
from parallax.results.lens_results import Verification
from parallax.strategy import Strategy
from parallax.workload import Workload


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

    Its floating-point parameters are cast to float64; a module that casts down inside is judged as
    it is.
    """
    start = time.perf_counter()
    program = ShardedModule(construct, strategy, workload)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    tokens = jnp.asarray(byte_tokens(text, workload.batch, workload.seq_len))
    on_progress("making the module")
    drawn = program.init()
    state = jax.tree.map(_widen, drawn)
    on_progress("unsharded module in float64")
    reference = jax.jit(_projected(program.reference))(state, tokens)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), program.specs)
    on_progress(f"{strategy.name} in float64")
    step = jax.jit(_projected(program.forward(mesh)), out_shardings=(shardings, None))
    found = jax.device_get(step(jax.device_put(state, shardings), tokens))
    reference = jax.device_get(reference)
    logits = np.asarray(reference[1], np.float64)
    row = judge(
        "float64",
        relative_error(np.asarray(found[1], np.float64), logits),
        worst_error(found[0], reference[0]),
    )
    return Verification(
        model=program.name,
        devices=strategy.mesh.size,
        platform=jax.devices()[0].platform,
        workload=workload,
        text=text_name,
        logit_rms=float(np.sqrt(np.mean(np.square(logits)))),
        rows=(row,),
        seconds=time.perf_counter() - start,
    )


def _widen(x):
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _projected(forward):
    """Return a function giving (gradients of a fixed random projection of the output, output)."""

    def loss(state, tokens):
        out = forward(state, tokens)
        weights = jax.random.normal(jax.random.key(1), out.shape, out.dtype)
        return jnp.mean(out * weights), out

    return jax.grad(loss, has_aux=True, allow_int=True)
