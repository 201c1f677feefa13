"""The MLP as two launches of the Mosaic kernel, for Hopper.

The hidden rows go through device memory (mostly the L2 cache): one launch for both products would
leave sums of [blocks, tokens, d_model] instead, more bytes from some tokens on. No GPU has run it
yet: it is checked in interpret mode, and compiled to machine code for the H100.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from parallax.kernels import hopper
from parallax.kernels.cache_tiled_mlp.cut import Cut, cut
from parallax.kernels.cache_tiled_mlp.mosaic_stream import Stream, kernel
from parallax.kernels.cache_tiled_mlp.reference import Matrix, act, group_of, of_layer


def mlp(
    x, up: Matrix, down: Matrix, gate: Matrix | None, *, layer, activation: str, out_dtype
) -> jax.Array:
    """As `api.cache_tiled_mlp`.

    Cost: of each launch, 2 FLOPs a weight and token, and the bytes of its weights, rows and
      results, each read or written once; declared to XLA. Sums of splits are read again by XLA.
    """
    firsts = [up] if gate is None else [up, gate]
    tokens = x.shape[0]
    cuts = [cut_of(tokens, matrices) for matrices in (firsts, [down])]
    activate = functools.partial(act, activation)
    if cuts[0].splits == 1:
        (hidden,) = stream(x, firsts, layer, cuts, x.dtype, activate, following=down.values)
        hidden = hidden[0]
    else:
        sums = stream(x, firsts, layer, cuts, jnp.float32, None, following=down.values)
        hidden = activate(*(part.sum(axis=0) for part in sums)).astype(x.dtype)
    whole = cuts[1].splits == 1
    (sums,) = stream(hidden, [down], layer, cuts[1:], out_dtype if whole else jnp.float32, None)
    return sums[0] if whole else sums.sum(axis=0).astype(out_dtype)


def cut_of(tokens: int, matrices: Sequence[Matrix]) -> Cut:
    """How a launch for these matrices is cut."""
    values = matrices[0].values
    _, inputs, outputs = values.shape
    return cut(tokens, inputs, outputs, matrices=len(matrices), item_bytes=values.dtype.itemsize)


def stream(
    x, matrices: Sequence[Matrix], layer, cuts: Sequence[Cut], dtype, activate, following=None
) -> list[jax.Array]:
    """One launch: x by each matrix, [splits, tokens, outputs]; of one array if they are activated.

    Args:
      x: [tokens, inputs].
      cuts: of this product, and of the next one where there is one.
      dtype: of the results.
      activate: of the sums of all matrices.
      following: weights of the next product.
    """
    mine, tokens, outputs = cuts[0], x.shape[0], matrices[0].values.shape[-1]
    group = group_of(matrices[0])
    scales = [m.scales for m in matrices if m.scales is not None]
    if not group:
        scales = [hopper.pad(of_layer(s, layer)[0], 0, mine.columns) for s in scales]
    biases = [of_layer(m.bias, layer).astype(jnp.float32) for m in matrices if m.bias is not None]
    how = Stream(
        mine, cuts[1] if following is not None else None, x.dtype, group, bool(biases), activate
    )
    # Copies of 8-row tiles need whole ones.
    x = hopper.pad(x, 0, 8)
    weights = [m.values for m in matrices]
    count = len(matrices) if activate is None else 1
    result = jax.ShapeDtypeStruct((mine.splits, x.shape[0], outputs), dtype)
    of_layer_bytes = sum(
        hopper.bytes_of(x) // x.shape[0] for x in (*weights, *(scales if group else ()))
    )
    out = hopper.call(
        "cache_tiled_mlp_down" if following is None else "cache_tiled_mlp_up",
        functools.partial(kernel, stream=how),
        [
            jnp.reshape(hopper.i32(layer), (1,)),
            x,
            *weights,
            *scales,
            *(hopper.pad(b, 0, mine.columns) for b in biases),
            *([] if following is None else [following]),
        ],
        [result] * count,
        grid={"block": mine.blocks},
        flops=2.0 * tokens * sum(math.prod(w.shape[1:]) for w in weights),
        bytes_accessed=of_layer_bytes + hopper.bytes_of(x, *biases, *[result] * count),
    )
    return [x[:, :tokens] for x in out]
