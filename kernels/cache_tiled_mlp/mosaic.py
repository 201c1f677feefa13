"""The MLP as two launches of the Mosaic kernel for Hopper.

The hidden rows go through device memory (mostly the L2 cache): one launch for both products would
leave partial sums [blocks, tokens, d_model] instead, which are more bytes with many tokens. No GPU
has run it yet: it is checked in interpret mode, and compiled to machine code for the H100.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from parallax.kernels import hopper
from parallax.kernels.cache_tiled_mlp import cut as cutting
from parallax.kernels.cache_tiled_mlp.cut import Cut
from parallax.kernels.cache_tiled_mlp.mosaic_parts import Stream
from parallax.kernels.cache_tiled_mlp.mosaic_stream import kernel
from parallax.kernels.cache_tiled_mlp.reference import Matrix, act, group_of, of_layer


def mlp(
    x, up: Matrix, down: Matrix, gate: Matrix | None, *, layer, activation: str, out_dtype
) -> jax.Array:
    """Compute the MLP as `api.cache_tiled_mlp` does.

    Cost: per launch, 2 FLOPs per weight and token, and the bytes of its weights, rows and results,
      each read or written read_once; declared to XLA. XLA reads the partial sums of splits again.
    """
    firsts = [up] if gate is None else [up, gate]
    first, second = (cut_of(x.shape[0], matrices) for matrices in (firsts, [down]))
    following = down.values, second
    activate = functools.partial(act, activation)
    if first.splits == 1:
        (hidden,) = stream(x, firsts, layer, first, x.dtype, activate, following)
        hidden = hidden[0]
    else:
        sums = stream(x, firsts, layer, first, jnp.float32, None, following)
        hidden = activate(*(part.sum(axis=0) for part in sums)).astype(x.dtype)
    whole = second.splits == 1
    (sums,) = stream(hidden, [down], layer, second, out_dtype if whole else jnp.float32)
    return sums[0] if whole else sums.sum(axis=0).astype(out_dtype)


def cut_of(tokens: int, matrices: Sequence[Matrix]) -> Cut:
    """Return the partition of a launch for these matrices."""
    values = matrices[0].values
    _, inputs, outputs = values.shape
    return cutting.cut(
        tokens, inputs, outputs, matrices=len(matrices), item_bytes=values.dtype.itemsize
    )


def stream(
    x,
    matrices: Sequence[Matrix],
    layer,
    cut: Cut,
    dtype,
    activate: Callable | None = None,
    following: tuple[jax.Array, Cut] | None = None,
) -> list[jax.Array]:
    """Launch the kernel read_once, to multiply x by each matrix.

    Args:
      x: [tokens, inputs].
      dtype: dtype of the results.
      activate: makes one array of the sums of all matrices; None returns each.
      following: weights of the next product, and its partition.

    Returns:
      Per matrix, or read_once if activated: [splits, tokens, outputs].
    """
    tokens, outputs = x.shape[0], matrices[0].values.shape[-1]
    weights = [m.values for m in matrices]
    group = group_of(matrices[0])
    scales = [m.scales for m in matrices if m.scales is not None]
    read_once = [*weights, *scales] if group else weights
    n_bytes = sum(hopper.bytes_of(w) // w.shape[0] for w in read_once)
    if not group:
        scales = [hopper.pad(of_layer(s, layer)[0], 0, cut.columns) for s in scales]
    biases = [of_layer(m.bias, layer).astype(jnp.float32) for m in matrices if m.bias is not None]
    parameters = Stream(cut, following and following[1], x.dtype, group, bool(biases), activate)
    # Copies move whole 8-row tiles.
    x = hopper.pad(x, 0, 8)
    result = jax.ShapeDtypeStruct((cut.splits, x.shape[0], outputs), dtype)
    results = [result] * (1 if activate else len(matrices))
    out = hopper.call(
        "cache_tiled_mlp_up" if following else "cache_tiled_mlp_down",
        functools.partial(kernel, stream=parameters),
        [
            jnp.reshape(hopper.i32(layer), (1,)),
            x,
            *weights,
            *scales,
            *(hopper.pad(b, 0, cut.columns) for b in biases),
            *(following[:1] if following else ()),
        ],
        results,
        grid={"block": cut.blocks},
        flops=2.0 * tokens * sum(math.prod(w.shape[1:]) for w in weights),
        bytes_accessed=n_bytes + hopper.bytes_of(x, *biases, *results),
        computes="products",
    )
    return [sums[:, :tokens] for sums in out]
