"""Baselines of a decoding step's attention: this repository's kernel, cuDNN and XLA."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.decode_attention.cases import Case, exact, inputs, program
from parallax.kernels.errors import relative_error
from parallax.kernels.ring_attention import Carry, finish

# (sequence, key head) pairs checked against float64; all pairs of a long cache take minutes.
_CHECKED = 4

draw = inputs


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function (q, k, v, spans) -> [B, H, K], or why it does not run."""

    def ours(implementation: str) -> Callable:
        attend = program(case, implementation)
        return lambda *arrays: finish(Carry(*attend(*arrays)), jnp.float32)[0][:, 0]

    # jax.nn.dot_product_attention calls this; calling it directly avoids transposing the cache.
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    def cudnn(q, k, v) -> jax.Array:
        scale = case.head_dim**-0.5
        out = dot_product_attention(q[:, :, None], k, v, scale=scale, qkv_layout="BNTH")
        return (out[0] if isinstance(out, tuple) else out)[:, :, 0]

    return {
        "mosaic": ours("mosaic"),
        "cudnn": "it takes a length, not spans" if case.spans else cudnn,
        "tokamax": "its keys are [B, M, G, K]: a copy of the cache would be timed too",
        "xla": ours("xla"),
    }


def error(case: Case, out, q, k, v, spans=None) -> float:
    """Compute the relative error of some heads of some sequences against float64 NumPy."""
    pairs = np.linspace(0, case.batch * case.kv_heads - 1, _CHECKED).astype(int)
    b, g = np.divmod(pairs, case.kv_heads)

    def checked(x) -> np.ndarray:
        """Select [pairs, ...] from all heads, grouped by key head."""
        return np.asarray(x.reshape(case.batch, case.kv_heads, -1, case.head_dim)[b, g])

    few = case._replace(batch=_CHECKED, heads=case.heads // case.kv_heads, kv_heads=1)
    own = () if spans is None else (np.asarray(spans)[b],)
    o, _, l = exact(few, checked(q), checked(k)[:, None], checked(v)[:, None], *own)
    return relative_error(checked(out), o[:, :, 0] / np.where(l == 0, 1, l))
