"""Baselines of a decoding step's attention: this repository's kernel, cuDNN and XLA."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.decode_attention.cases import Case, exact, inputs, program
from parallax.kernels.ring_attention import Carry, finish

# (sequence, key head) pairs checked against float64; all pairs of a long cache take minutes.
_CHECKED = 4


def draw(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k, v and any spans."""
    return inputs(case, seed)


def baselines(case: Case) -> dict[str, Callable | str]:
    """Return by name a function (q, k, v, spans) -> [B, H, K], or why it does not run."""
    return {
        "mosaic": _ours(case, "mosaic"),
        "cudnn": _cudnn(case),
        "tokamax": "its keys are [B, M, G, K]: a copy of the cache would be timed too",
        "xla": _ours(case, "xla"),
    }


def error(case: Case, out, q, k, v, spans=None) -> float:
    """Compute the relative error of some heads of some sequences against float64 NumPy."""
    queries = case.heads // case.kv_heads
    part = case._replace(batch=1, heads=queries, kv_heads=1)
    wrong = right = 0.0
    for number in np.linspace(0, case.batch * case.kv_heads - 1, _CHECKED).astype(int):
        b, g = divmod(int(number), case.kv_heads)
        rows = slice(g * queries, (g + 1) * queries)
        keys, values = (np.asarray(x[b, g])[None, None] for x in (k, v))
        own = () if spans is None else (np.asarray(spans)[b : b + 1],)
        o, _, l = exact(part, np.asarray(q[b, rows])[None], keys, values, *own)
        expected = (o / np.where(l == 0, 1, l)[..., None])[0, :, 0]
        actual = np.asarray(out[b, rows]).astype(np.float64)
        wrong += float(np.sum((actual - expected) ** 2))
        right += float(np.sum(expected**2))
    return (wrong / right) ** 0.5


def _ours(case: Case, implementation: str) -> Callable:
    attend = program(case, implementation)
    return lambda *arrays: finish(Carry(*attend(*arrays)), jnp.float32)[0][:, 0]


def _cudnn(case: Case) -> Callable | str:
    if case.spans:
        return "it takes a length, not spans"
    # jax.nn.dot_product_attention calls this; calling it directly avoids transposing the cache.
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    def attend(q, k, v) -> jax.Array:
        out = dot_product_attention(
            q[:, :, None], k, v, scale=case.head_dim**-0.5, qkv_layout="BNTH"
        )
        return (out[0] if isinstance(out, tuple) else out)[:, :, 0]

    return attend
