"""The cases of decode attention that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from parallax.kernels.decode_attention.api import decode_attention
from parallax.kernels.validation import Kind

ABOUT = (
    "One query per sequence attends to the slots of its cache that count, as a partial softmax: "
    "float32 (o, m, l). The cache is divided into splits, and the slots that count (traced) are "
    "distributed evenly over a sequence's splits. Grouped heads; head_dim 64, 128, 256, 512."
)
# From one sequence to the next, every span ends this many slots earlier.
_SHORTER = 29


class Case(NamedTuple):
    """The parameters of one decoding step on random inputs.

    Attributes:
      head_dim, dtype: head dimension and dtype of q, k and v.
      slots: slots of a sequence's cache.
      spans: (start, end) of the slots that count in the first sequence; later ones have fewer.
        Passed as traced numbers. (): all slots count, and no spans are passed.
      heads, kv_heads: heads of the queries, and of keys and values.
      batch: sequences.
      window: only so many of the slots count, the last ones of the last spans. None: all of them.
      has_sinks: whether every head has a score without a value.
    """

    head_dim: int
    dtype: str
    slots: int
    spans: tuple[tuple[int, int], ...] = ()
    heads: int = 1
    kv_heads: int = 1
    batch: int = 1
    window: int | None = None
    has_sinks: bool = False

    @property
    def name(self) -> str:
        spans = "".join(f"-{start}to{end}" for start, end in self.spans)
        return (
            f"{self.dtype}-d{self.head_dim}-{self.slots}-{self.batch}x{self.heads}over"
            f"{self.kv_heads}{spans}{'' if self.window is None else f'-window{self.window}'}"
            f"{'-sinks' * self.has_sinks}"
        )

    @property
    def seen(self) -> int:
        """Number of slots that count, over all sequences."""
        if not self.spans:
            return self.batch * self.slots
        return int(np.maximum(np.diff(_spans(self), axis=-1), 0).sum())

    @property
    def flops(self) -> float:
        """FLOPs of the scores that count and of their values."""
        return 4.0 * self.seen * self.heads * self.head_dim

    @property
    def bytes_accessed(self) -> float:
        """Bytes of keys and values that count, of queries, and of a float32 output, once each."""
        cache = 4.0 * self.seen * self.kv_heads * self.head_dim
        return cache + 6.0 * self.batch * self.heads * self.head_dim

    @property
    def kind(self) -> Kind:
        return Kind(self.head_dim, self.dtype)


# Few slots, for the interpreter: every head_dim, ragged and empty spans, groups of query heads that
# 8 does not divide or that read the keys twice, more splits than tiles.
SMALL = (
    Case(64, "bfloat16", 328, heads=6, kv_heads=2),
    Case(64, "float16", 400, ((0, 131), (152, 391)), batch=2),
    Case(128, "bfloat16", 200, ((0, 137),), heads=6, kv_heads=2, batch=2),
    Case(128, "float16", 312, ((3, 11), (290, 20), (71, 312)), heads=8),
    Case(256, "bfloat16", 200, ((0, 65),), heads=2, kv_heads=2, batch=3),
    Case(256, "float16", 136, heads=20),
    Case(512, "bfloat16", 200, ((0, 195),), heads=9),
    Case(512, "float16", 136, ((0, 31),), heads=34, batch=2),
    Case(64, "bfloat16", 400, ((0, 300), (310, 400)), 8, 2, batch=2, window=128, has_sinks=True),
)

# Every partition of the work: up to 8 query heads per key head, 16, and the most that share one
# read; both dtypes; all slots, a length, and the spans of a zigzag ring.
_ZIGZAG = ((0, 312), (312, 625), (625, 630))
SHIPPED = (
    *(
        Case(head_dim, dtype, 632, spans, heads=2 * queries, kv_heads=2, batch=2)
        for head_dim, most in ((64, 64), (128, 64), (256, 32), (512, 16))
        for queries, dtype, spans in (
            (1, "float16", ((0, 625),)), (8, "bfloat16", ()), (16, "bfloat16", _ZIGZAG),
            (32, "bfloat16", ((0, 625),)), (64, "bfloat16", ((0, 625),)),
        )
        if queries <= most and (queries > 1 or head_dim in (128, 512))
    ),
    Case(64, "bfloat16", 632, ((0, 625),), 16, 2, batch=2, window=128, has_sinks=True),
)  # fmt: skip

# A batch of 16 over more than 1 GB of keys and values; also one with unused slots between the
# prompts and the new tokens, and one of a window.
TIMED = (
    Case(64, "bfloat16", 32_768, heads=64, kv_heads=8, batch=16),
    Case(128, "bfloat16", 32_768, heads=64, kv_heads=8, batch=16),
    Case(128, "bfloat16", 10_000, heads=16, kv_heads=16, batch=16),
    Case(128, "bfloat16", 32_768, ((0, 20_000), (30_000, 32_768)), heads=64, kv_heads=8, batch=16),
    Case(256, "bfloat16", 10_000, heads=64, kv_heads=8, batch=16),
    Case(512, "bfloat16", 10_000, heads=64, kv_heads=8, batch=16),
    Case(512, "bfloat16", 10_000, heads=8, kv_heads=8, batch=16),
    Case(64, "bfloat16", 32_768, ((0, 32_768),), heads=64, kv_heads=8, batch=16, window=128),
)


def inputs(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q [B, H, K], k and v [B, G, M, K] in the case's dtype, any spans [B, S, 2] and sinks."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(case.dtype)  # bfloat16 is known to NumPy once JAX is imported

    def draw(heads: int, *slots: int) -> np.ndarray:
        shape = (case.batch, heads, *slots, case.head_dim)
        return random.standard_normal(shape, np.float32).astype(dtype)

    arrays = [draw(case.heads), draw(case.kv_heads, case.slots), draw(case.kv_heads, case.slots)]
    if case.spans:
        arrays.append(_spans(case))
    if case.has_sinks:
        arrays.append(random.standard_normal(case.heads, np.float32) + 3)
    return tuple(arrays)


def program(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a function to the partial softmax (o, m, l), as the operation returns it."""

    def attend(q, k, v, spans=None, sinks=None):
        return tuple(
            decode_attention(
                q, k, v, scale=case.head_dim**-0.5, kv_spans=spans, sinks=sinks, window=case.window,
                implementation=implementation,
            )
        )  # fmt: skip

    return attend


def exact(case: Case, q, k, v, spans=None, sinks=None) -> tuple[np.ndarray, ...]:
    """Compute (o, m, l) of textbook attention in float64; 0, -inf and 0 where nothing counts."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    q = q.reshape(case.batch, case.kv_heads, -1, case.head_dim)
    scores = np.einsum("bgrk,bgmk->bgrm", q, k) * case.head_dim**-0.5
    if spans is not None:
        slots = np.arange(case.slots)
        counts = ((slots >= spans[:, :, :1]) & (slots < spans[:, :, 1:])).any(1)
        scores = np.where(counts[:, None, None], scores, -np.inf)
    alone = -np.inf if sinks is None else np.reshape(sinks, (case.kv_heads, -1, 1))
    largest = np.maximum(scores.max(-1, keepdims=True), alone)
    base = np.where(np.isinf(largest), 0, largest)
    p = np.exp(scores - base)
    l = p.sum(-1, keepdims=True) + np.exp(alone - base)
    rows = (case.batch, case.heads, 1)
    o = np.einsum("bgrm,bgmk->bgrk", p, v).reshape(*rows, -1)
    return o, largest.reshape(rows), l.reshape(rows)


def _spans(case: Case) -> np.ndarray:
    """Return the spans of all sequences, [B, S, 2] int32."""
    spans = np.array(case.spans, np.int32)[None].repeat(case.batch, axis=0)
    spans[:, :, 1] -= _SHORTER * np.arange(case.batch, dtype=np.int32)[:, None]
    spans = np.maximum(spans, 0)
    left = case.slots if case.window is None else case.window
    for start, end in spans.swapaxes(0, 1)[::-1].swapaxes(1, 2):  # views
        start[...] = np.maximum(start, end - left)
        left = left - np.maximum(end - start, 0)
    return spans
