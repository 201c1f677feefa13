"""The cases of the attention step that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from parallax.kernels import dispatch
from parallax.kernels.ring_attention.api import attention_step
from parallax.kernels.ring_attention.mask import Mask
from parallax.kernels.ring_attention.tiles import CANDIDATES, DEFAULTS, shipped, unsupported
from parallax.kernels.validation import Kind

ABOUT = (
    "One step of online-softmax attention, forward: from a float32 carry (o, m, l) or none, to a "
    "carry or to the normalised output. Full and causal masks, windows and segments, whose hidden "
    "blocks are skipped, sinks, a limit on the keys, grouped heads, any lengths; head_dim 64, 128, "
    "256, 512. Several tilings: softmax overlapped with products (ahead), alternating warpgroups "
    "(turns), clusters of two that share keys and values by multicast, one consumer warpgroup (64 "
    "rows), thread blocks that take tile after tile of whole attention (persistent). Until a GPU "
    "has timed them, the defaults are turns, ahead with cluster for 512, persistent where they can "
    "be, and 64 rows where the thread blocks of turns leave half of the multiprocessors idle."
)


class Case(NamedTuple):
    """The parameters of one step on random inputs.

    Attributes:
      head_dim, dtype: head dimension and dtype of q, k and v.
      q_length, kv_length: tokens of queries, and of keys.
      heads, kv_heads: heads of the queries, and of keys and values.
      is_causal: whether the mask is causal.
      limit: number of keys that count, passed as a traced scalar; None: all.
      batch: sequences.
      tile: the Mosaic kernel's tiling, a name of `tiles.CANDIDATES`; None: the one that ships.
      window, offset: as in `api.attention_step`, with is_causal.
      segments: documents of about equal length in each sequence; 0: no segment ids.
      first: whether no step went before; otherwise one over `EARLIER` other keys did.
      sinks: whether heads have sinks, with `first`.
      last: whether the result is the normalised output.
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
    window: int | None = None
    offset: int = 0
    segments: int = 0
    first: bool = False
    sinks: bool = False
    last: bool = False

    @property
    def name(self) -> str:
        mask = "causal" if self.is_causal else "full"
        parts = {
            f"first{self.limit}": self.limit is not None,
            f"window{self.window}+{self.offset}": self.window is not None,
            f"{self.segments}segments": self.segments,
            "sinks": self.sinks,
            "begins": self.first,
            "ends": self.last,
        }
        return (
            f"{self.dtype}-d{self.head_dim}-{self.q_length}x{self.kv_length}"
            f"-{self.batch}x{self.heads}over{self.kv_heads}-{mask}"
            f"{''.join(f'-{part}' for part, has in parts.items() if has)}"
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
        is_whole = self.first and self.last and not self.segments
        shape = self.batch, self.q_length, self.heads, self.head_dim
        cut = self.tile or shipped(shape, is_whole=is_whole)
        return Kind(self.head_dim, self.dtype, self.is_causal, cut)

    @property
    def options(self) -> dict[str, Any]:
        """The static arguments of a step."""
        return {
            "is_causal": self.is_causal, "window": self.window, "offset": self.offset,
            "scale": self.head_dim**-0.5,
        }  # fmt: skip

    def named(self, arrays) -> dict[str, Any]:
        """Return by name the arrays of `inputs` that not every case has, arguments of a step."""
        has = {
            "kv_length": self.limit is not None, "q_segment_ids": self.segments,
            "kv_segment_ids": self.segments, "sinks": self.sinks,
        }  # fmt: skip
        return dict(zip((name for name, x in has.items() if x), arrays, strict=True))


EARLIER = 24

# Few tokens, for the interpreter: every head_dim, ragged ends, grouped heads, masks, both dtypes.
# Those of up to 256 without a tile run in blocks of 64 rows.
SMALL = (
    Case(64, "bfloat16", 40, 200),
    Case(64, "float16", 137, 137, heads=2, is_causal=True, tile="turns"),
    Case(128, "bfloat16", 313, 313, is_causal=True),
    Case(128, "float16", 70, 160, heads=2, limit=131, tile="turns"),
    Case(256, "bfloat16", 72, 150, heads=2, kv_heads=2, batch=2),
    Case(256, "float16", 130, 130, is_causal=True),
    Case(512, "bfloat16", 100, 150, heads=2),
    Case(512, "float16", 137, 137, is_causal=True),
    Case(512, "bfloat16", 64, 192, limit=65),
    Case(64, "bfloat16", 137, 300, tile="plain"),
    Case(64, "float16", 72, 200, heads=2, tile="ahead"),
    Case(64, "bfloat16", 300, 300, is_causal=True, tile="ahead, turns, cluster"),
    Case(512, "bfloat16", 130, 130, is_causal=True, tile="cluster"),
    Case(512, "float16", 40, 200, limit=129, tile="ahead"),
    Case(512, "bfloat16", 70, 70, is_causal=True, tile="plain"),
    Case(128, "bfloat16", 137, 137, is_causal=True, window=50, segments=3, first=True, sinks=True,
         last=True, heads=2),
    Case(64, "float16", 150, 150, is_causal=True, window=70, offset=150, last=True, tile="turns"),
    Case(512, "bfloat16", 70, 150, segments=2, batch=2, last=True),
    Case(512, "bfloat16", 70, 140, is_causal=True, window=33, offset=71, first=True, tile="plain"),
    Case(64, "bfloat16", 130, 130, segments=2, first=True, tile="ahead, turns, cluster"),
    Case(256, "float16", 64, 70, limit=65, first=True, sinks=True, last=True),
    Case(128, "float16", 70, 300, heads=2, limit=131),
    Case(64, "bfloat16", 150, 400, segments=2, batch=2, last=True),
    Case(128, "bfloat16", 137, 137, is_causal=True, window=50, segments=3, heads=2),
)  # fmt: skip

_LONG = tuple(
    Case(head_dim, "bfloat16", 10_000, 10_000, heads=8, kv_heads=4, is_causal=True)
    for head_dim in (64, 128, 256, 512)
)
_PIECES = tuple(case._replace(q_length=625, kv_length=625) for case in _LONG[:3])  # of 64 rows
# 10,000 tokens on one device, over 16 devices, and halves of such a piece in zigzag order; every
# other tiling of a head_dim; and whole attention, all masks at once, and those with a carry: what
# needs most registers.
SHIPPED = (
    *(
        Case(head_dim, dtype, length, length, heads=8, kv_heads=4, is_causal=causal, limit=limit)
        for head_dim in (64, 128, 256, 512)
        for dtype, length, causal, limit in (
            ("bfloat16", 10_000, True, None),
            ("float16", 625, False, None),
            ("bfloat16", 313, False, 312),
        )
        if limit is None or head_dim in (128, 512)
    ),
    *(
        case._replace(tile=name, first=tile.persistent, last=tile.persistent)
        for case in _LONG
        for name, tile in CANDIDATES[case.head_dim].items()
        if name != DEFAULTS[case.head_dim]
    ),
    *(
        case._replace(first=True, last=True, **more)
        for case in _LONG
        for more in ({"tile": DEFAULTS[case.head_dim]}, {"window": 4096, "sinks": True})
    ),
    *(
        case._replace(window=4096, segments=8, first=True, sinks=True, last=True)
        for case in (*_LONG, *_PIECES)
    ),
    *(
        case._replace(window=4096, offset=case.q_length, segments=8)
        for case in (*_LONG[2:], *_PIECES)
    ),
)

# Whole sequences, as in published figures, and pieces of a ring.
TIMED = (
    *(
        Case(
            head_dim, "bfloat16", length, length, heads=16, kv_heads=16, is_causal=causal,
            first=True, last=True,
        )
        for head_dim in (128, 256, 512)
        for length in (4096, 10_000)
        for causal in (False, True)
    ),
    *(Case(128, "bfloat16", length, length, heads=16, kv_heads=16, first=True, last=True)
      for length in (312, 625)),
)  # fmt: skip


def inputs(case: Case, seed: int) -> tuple[Any, ...]:
    """Draw q, k, v, the earlier k, v, all [B, tokens, heads, head_dim], and arrays of `named`."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(case.dtype)  # bfloat16 is known to NumPy once JAX is imported

    def draw(length: int, heads: int) -> np.ndarray:
        return random.normal(size=(case.batch, length, heads, case.head_dim)).astype(dtype)

    earlier = 0 if case.first else EARLIER
    lengths = (case.kv_length, case.kv_length, earlier, earlier)
    arrays = [draw(case.q_length, case.heads), *(draw(n, case.kv_heads) for n in lengths)]
    if case.limit is not None:
        arrays.append(np.array(case.limit, np.int32))
    if case.segments:
        arrays += [
            np.tile(np.arange(n, dtype=np.int32) * case.segments // n, (case.batch, 1))
            for n in (case.q_length, case.kv_length)
        ]
    if case.sinks:
        arrays.append(random.normal(size=case.heads).astype(np.float32))
    return tuple(arrays)


def program(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a function to the step's result, after one over the earlier keys by XLA."""
    step, scale = step_of(case, implementation), case.head_dim**-0.5

    def attend(q, k, v, k_earlier, v_earlier, *arrays):
        carry = None
        if not case.first:
            carry = attention_step(
                q, k_earlier, v_earlier, None, is_causal=False, scale=scale, implementation="xla"
            )
        return tuple(step(q, k, v, carry, last=case.last, **case.named(arrays)))

    return attend


def step_of(case: Case, implementation: str | None) -> Callable[..., Any]:
    """Return `attention_step` with the case's static arguments, and its tiling if it has one."""
    if implementation != "mosaic" or case.tile is None:
        return functools.partial(attention_step, implementation=implementation, **case.options)
    tile, scale = CANDIDATES[case.head_dim][case.tile], case.head_dim**-0.5

    def step(q, k, v, carry, *, last=False, sinks=None, **arrays):
        from parallax.kernels.ring_attention import mosaic

        reason = unsupported(q, k, v, scale, None)
        dispatch.choose("attention_step", implementation, {"mosaic": reason, "xla": None})
        mask = Mask(case.is_causal, window=case.window, offset=case.offset, **arrays)
        return mosaic.step(
            q, k, v, carry, mask=mask, scale=scale, sinks=sinks, last=last, tile=tile
        )

    return step


def exact(case: Case, q, k, v, k_earlier, v_earlier, *arrays) -> tuple[np.ndarray, ...]:
    """Compute textbook attention over earlier and new keys, in float64: (o, m, l) or (out, lse)."""
    queries, extras = np.arange(case.q_length), case.named(arrays)
    new = masked_scores(case, q, k, queries, np.arange(case.kv_length), extras)
    everything = Case(case.head_dim, case.dtype, 0, 0, case.heads, case.kv_heads)
    earlier = np.arange(k_earlier.shape[1])
    old = masked_scores(everything, q, k_earlier, queries, earlier, {"kv_length": len(earlier)})
    scores = np.concatenate([old, new], axis=-1)
    values = every_head(case, np.concatenate([v_earlier, v], axis=1))
    sinks = extras.get("sinks", np.full(case.heads, -np.inf)).astype(float)[None, :, None]
    m = np.maximum(scores.max(-1), sinks)
    p = np.exp(scores - m[..., None])
    o, l = np.einsum("bhlm,bmhk->bhlk", p, values), p.sum(-1) + np.exp(sinks - m)
    if case.last:
        return np.swapaxes(o / l[..., None], 1, 2), m + np.log(l)
    return o, m, l


def masked_scores(case: Case, q, k, queries, keys, extras: dict[str, Any]) -> np.ndarray:
    """Compute scores [B, H, queries, keys] of some queries and keys, in float64."""
    back = case.offset + queries[:, None] - keys
    seen = np.broadcast_to(keys < extras.get("kv_length", case.kv_length), back.shape)
    if case.is_causal:
        seen = seen & (back >= 0)
    if case.window is not None:
        seen = seen & (back < case.window)
    if case.segments:
        q_ids, kv_ids = extras["q_segment_ids"][:, queries], extras["kv_segment_ids"][:, keys]
        seen = (seen & (q_ids[:, :, None] == kv_ids[:, None]))[:, None]
    rows, columns = q[:, queries].astype(np.float64), every_head(case, k[:, keys])
    scores = np.einsum("blhk,bmhk->bhlm", rows, columns) * case.head_dim**-0.5
    return np.where(seen, scores, -np.inf)


def every_head(case: Case, x: np.ndarray) -> np.ndarray:
    """Repeat keys or values for each query head, in float64."""
    return np.repeat(x.astype(np.float64), case.heads // case.kv_heads, axis=2)
