"""The cases of the attention step that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from parallax.kernels import dispatch
from parallax.kernels.ring_attention.api import Carry, attention_step, empty_carry
from parallax.kernels.ring_attention.tiles import CANDIDATES, DEFAULT, unsupported
from parallax.kernels.validation import Kind

ABOUT = (
    "One step of online-softmax attention, forward: takes and returns float32 (o, m, l). Full and "
    "causal masks, a limit on the keys, grouped heads, any lengths; head_dim 64, 128, 256, 512. "
    "Several tilings: softmax overlapped with products (ahead), alternating warpgroups (turns), "
    "clusters of two that share keys and values by multicast; plain is the default until a GPU has "
    "timed them."
)


class Case(NamedTuple):
    """The parameters of one step on random inputs, after a step over `EARLIER` other keys.

    Attributes:
      head_dim, dtype: head dimension and dtype of q, k and v.
      q_length, kv_length: tokens of queries, and of keys.
      heads, kv_heads: heads of the queries, and of keys and values.
      is_causal: whether the mask is causal.
      limit: number of keys that count, passed as a traced scalar; None: all.
      batch: sequences.
      tile: the Mosaic kernel's tiling, a name of `tiles.CANDIDATES`; None: the one that ships.
    """

    head_dim: int
    dtype: str
    q_length: int
    kv_length: int
    heads: int = 1
    kv_heads: int = 1
    is_causal: bool = False
    limit: int | None = None
    batch: int = 1
    tile: str | None = None

    @property
    def name(self) -> str:
        mask = "causal" if self.is_causal else "full"
        limit = "" if self.limit is None else f"-first{self.limit}"
        return (
            f"{self.dtype}-d{self.head_dim}-{self.q_length}x{self.kv_length}"
            f"-{self.batch}x{self.heads}over{self.kv_heads}-{mask}{limit}"
            f"{'' if self.tile is None else f' ({self.tile})'}"
        )

    @property
    def flops(self) -> float:
        """FLOPs of visible scores and their values, the unit of throughput."""
        keys = self.kv_length if self.limit is None else self.limit
        pairs = (keys + 1) / 2 if self.is_causal else keys
        return 4.0 * self.batch * self.heads * self.q_length * pairs * self.head_dim

    @property
    def bytes_accessed(self) -> float:
        """Bytes of queries, keys and values, read once, and of the output, written once."""
        tokens = 2 * self.heads * self.q_length + 2 * self.kv_heads * self.kv_length
        return 2.0 * self.batch * tokens * self.head_dim

    @property
    def kind(self) -> Kind:
        return Kind(self.head_dim, self.dtype, self.is_causal, self.tile or DEFAULT)

    uses_wgmma = True


EARLIER = 24

# Few tokens, for the interpreter: every head_dim, ragged ends, grouped heads, masks, both dtypes.
SMALL = (
    Case(64, "bfloat16", 40, 200),
    Case(64, "float16", 137, 137, heads=2, is_causal=True),
    Case(128, "bfloat16", 313, 313, is_causal=True),
    Case(128, "float16", 70, 160, heads=2, limit=131),
    Case(256, "bfloat16", 72, 150, heads=2, kv_heads=2, batch=2),
    Case(256, "float16", 130, 130, is_causal=True),
    Case(512, "bfloat16", 100, 150, heads=2),
    Case(512, "float16", 137, 137, is_causal=True),
    Case(512, "bfloat16", 64, 192, limit=65),
    Case(64, "bfloat16", 137, 300, tile="turns"),
    Case(64, "float16", 72, 200, heads=2, tile="ahead"),
    Case(64, "bfloat16", 300, 300, is_causal=True, tile="ahead, turns, cluster"),
    Case(512, "bfloat16", 130, 130, is_causal=True, tile="cluster"),
    Case(512, "float16", 40, 200, limit=129, tile="ahead"),
    Case(512, "bfloat16", 137, 137, is_causal=True, tile="ahead, cluster"),
)

# 10,000 tokens on one device, over 16 devices, and halves of such a piece in zigzag order; and
# every other tiling of a head_dim, on the case that needs most registers.
SHIPPED = tuple(
    Case(head_dim, dtype, length, length, heads=8, kv_heads=4, is_causal=causal, limit=limit)
    for head_dim in (64, 128, 256, 512)
    for dtype, length, causal, limit in (
        ("bfloat16", 10_000, True, None),
        ("float16", 625, False, None),
        ("bfloat16", 313, False, 312),
    )
    if limit is None or head_dim in (128, 512)
) + tuple(
    Case(head_dim, "bfloat16", 10_000, 10_000, heads=8, kv_heads=4, is_causal=True, tile=tile)
    for head_dim in (64, 128, 256, 512)
    for tile in CANDIDATES[head_dim]
    if tile != DEFAULT
)

# Whole sequences, as in published figures.
TIMED = tuple(
    Case(head_dim, "bfloat16", length, length, heads=16, kv_heads=16, is_causal=causal)
    for head_dim in (128, 256, 512)
    for length in (4096, 10_000)
    for causal in (False, True)
)


def inputs(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k, v and the earlier k, v, [B, tokens, heads, head_dim], and any limit."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(case.dtype)  # bfloat16 is known to NumPy once JAX is imported

    def draw(length: int, heads: int) -> np.ndarray:
        return random.normal(size=(case.batch, length, heads, case.head_dim)).astype(dtype)

    lengths = (case.kv_length, case.kv_length, EARLIER, EARLIER)
    limit = () if case.limit is None else (np.array(case.limit, np.int32),)
    return draw(case.q_length, case.heads), *(draw(n, case.kv_heads) for n in lengths), *limit


def program(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a function to (o, m, l) over the earlier keys (by XLA) and the new ones."""
    scale = case.head_dim**-0.5

    def attend(q, k, v, k_earlier, v_earlier, limit=None):
        carry = attention_step(
            q, k_earlier, v_earlier, empty_carry(q), is_causal=False, scale=scale,
            implementation="xla",
        )  # fmt: skip
        return tuple(step_of(case, implementation)(q, k, v, carry, limit))

    return attend


def step_of(case: Case, implementation: str | None) -> Callable[..., Carry]:
    """Return a function (q, k, v, carry, limit) -> carry, with the case's tiling."""
    options = {"is_causal": case.is_causal, "scale": case.head_dim**-0.5}

    def step(q, k, v, carry, limit=None):
        if implementation == "mosaic" and case.tile is not None:
            from parallax.kernels.ring_attention import mosaic

            reasons = {"mosaic": unsupported(q, k, v, options["scale"], False, None), "xla": None}
            dispatch.choose("attention_step", implementation, reasons)
            tile = CANDIDATES[case.head_dim][case.tile]
            return Carry(*mosaic.step(q, k, v, *carry, kv_length=limit, tile=tile, **options))
        return attention_step(
            q, k, v, carry, kv_length=limit, implementation=implementation, **options
        )

    return step


def exact(case: Case, q, k, v, k_earlier, v_earlier, limit=None) -> tuple[np.ndarray, ...]:
    """Compute (o, m, l) of textbook attention over earlier and new keys, in float64."""
    repeat = case.heads // case.kv_heads
    keys, values = (
        np.repeat(np.concatenate(x, axis=1).astype(np.float64), repeat, axis=2)
        for x in ((k_earlier, k), (v_earlier, v))
    )
    scores = np.einsum("blhk,bmhk->bhlm", q.astype(np.float64), keys) * case.head_dim**-0.5
    new = np.arange(case.kv_length)
    limit = case.kv_length if limit is None else limit
    seen = np.broadcast_to(new < limit, (case.q_length, case.kv_length))
    if case.is_causal:
        seen = seen & (new <= np.arange(case.q_length)[:, None])
    seen = np.concatenate([np.ones((case.q_length, EARLIER), bool), seen], axis=1)
    scores = np.where(seen, scores, -np.inf)
    m = scores.max(-1)
    p = np.exp(scores - m[..., None])
    return np.einsum("bhlm,bmhk->bhlk", p, values), m, p.sum(-1)
