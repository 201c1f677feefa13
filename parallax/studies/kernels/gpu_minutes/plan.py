"""The plan of a GPU run as data: parts, groups and items, the most needed first.

A group is a process of its own, killed when its time is up, so that a kernel that hangs costs only
its group.
"""

from typing import Any, Literal, NamedTuple

from parallax.kernels.cache_tiled_mlp import cases as mlp
from parallax.kernels.decode_attention import cases as decode
from parallax.kernels.packed_matmul import cases as packed
from parallax.kernels.ring_attention import backward_cases as backward
from parallax.kernels.ring_attention import cases as forward
from parallax.kernels.ring_attention.tiles import CANDIDATES, DEFAULTS, SMALL_BLOCKS


class Item(NamedTuple):
    """One task of the plan.

    Attributes:
      work: its kind: "smoke" (versions, a streaming read), "ceilings" (a product, a copy), "check"
        (against float64), "time" (beside baselines), "profile" (each launch of a call).
      operation: a name of `kernels.operations`; "" for the first two.
      case: a case of that operation.
      baselines: names of the operation's `baselines` to time; () takes all.
      seconds: time it needs: with less left, it is not started.
    """

    work: Literal["smoke", "ceilings", "check", "time", "profile"]
    operation: str = ""
    case: Any = None
    baselines: tuple[str, ...] = ()
    seconds: float = 4

    @property
    def name(self) -> str:
        return self.work if self.case is None else f"{self.work} {self.operation} {self.case.name}"


class Group(NamedTuple):
    """The items that share a process, in order.

    Attributes:
      limit_s: seconds after which the process is killed, including the start of Python and JAX.
    """

    name: str
    limit_s: float
    items: tuple[Item, ...]


class Part(NamedTuple):
    """The groups that one command runs.

    Attributes:
      deadline_s: seconds after which nothing runs any more.
    """

    deadline_s: float
    groups: tuple[Group, ...]


_CHECKED, _TIMED = 4, 16  # heads; 10,000 tokens of four heads in float64 take a GPU about a second


def _attention(
    head_dim: int, length: int, heads: int, *, is_causal: bool, tile: str | None = None,
    is_whole: bool = False,
) -> forward.Case:  # fmt: skip
    return forward.Case(
        head_dim, "bfloat16", length, length, heads, heads, is_causal=is_causal, tile=tile,
        first=is_whole, last=is_whole,
    )  # fmt: skip


def _checks(operation: str, cases) -> tuple[Item, ...]:
    return tuple(Item("check", operation, case) for case in cases)


def _attention_checks(head_dim: int, small: int = 1, cuts: bool = True) -> tuple[Item, ...]:
    """Return checks of small cases, a ring's piece, whole attention, a step and other tilings.

    A piece takes small blocks where there are any: then with both masks.
    """
    few = [c for c in forward.SMALL if c.head_dim == head_dim and c.tile is None][:small]
    masks = (False, True)[: 1 + (SMALL_BLOCKS in CANDIDATES[head_dim])]
    others = [
        name
        for name, tile in CANDIDATES[head_dim].items()
        if name not in (DEFAULTS[head_dim], SMALL_BLOCKS) and not tile.persistent
    ]
    cases = (
        *few,
        *(_attention(head_dim, 625, _CHECKED, is_causal=x) for x in masks),
        *(
            _attention(head_dim, 10_000, _CHECKED, is_causal=x, is_whole=True)
            for x in (False, True)
        ),
        *(
            _attention(head_dim, 10_000, _CHECKED, is_causal=True, tile=tile)
            for tile in (None, *(others if cuts else ()))
        ),
    )
    return _checks("ring_attention", cases)


def _times(
    length: int, is_causal: bool, baselines: tuple[str, ...] = (), seconds: float = 10
) -> tuple[Item, ...]:
    return tuple(
        Item(
            "time", "ring_attention",
            _attention(head_dim, length, _TIMED, is_causal=is_causal, is_whole=True), baselines,
            seconds,
        )
        for head_dim in (128, 512, 256)
    )  # fmt: skip


_PLAIN = ("xla", "cudnn", "mosaic")
_CUTS = (*_PLAIN, *(f"mosaic: {tile}" for tile in dict.fromkeys(
    tile for tiles in CANDIDATES.values() for tile in tiles)))  # fmt: skip
# And the tilings of a ring's steps.
_STEPS = (*_PLAIN, *(f"mosaic: {tile}" for tile in dict.fromkeys(DEFAULTS.values())))
# A step of a causal ring of 16 in zigzag order: half of 625 queries to as many keys.
_PIECE = _attention(128, 312, _TIMED, is_causal=False, is_whole=True)
_WHOLE = tuple(
    _attention(head_dim, 10_000, _TIMED, is_causal=False, is_whole=True) for head_dim in (128, 512)
)
_BACKWARD = tuple(
    backward.Case(*_attention(head_dim, 10_000, _CHECKED, is_causal=True))
    for head_dim in (128, 512, 256)
)
_MLP = (mlp.SMALL[0], mlp.SMALL[3])  # bfloat16 and INT8 weights
_PACKED = (packed.SMALL[1], *packed.SMALL[-2:])  # INT8 in 2:4, W8A8, experts of INT4 in 2:4
_DECODE = (decode.SMALL[2], decode.SMALL[0], decode.SMALL[6], decode.SMALL[4])

FIRST = Part(
    420,
    (
        Group("smoke", 25, (Item("smoke", seconds=0), Item("ceilings"))),
        Group("right: 128", 50, _attention_checks(128, small=2)),
        Group("right: 512", 40, _attention_checks(512)),
        Group("right: 256 and 64", 45,
              (*_attention_checks(256, small=0, cuts=False),
               *_attention_checks(64, small=0, cuts=False))),
        Group("right: decode", 20, _checks("decode_attention", _DECODE)),
        Group("right: backward", 25, _checks("ring_attention_backward", _BACKWARD)),
        Group("right: MLP", 20, _checks("cache_tiled_mlp", _MLP)),
        Group("time: full", 70, _times(10_000, False, _CUTS, 16)),
        Group("time: causal", 42, _times(10_000, True, _STEPS, 12)),
        Group("time: short", 33, (
            Item("time", "ring_attention", _PIECE, (*_PLAIN, "mosaic: turns"), 8),
            *_times(4096, False, _PLAIN, 8),
        )),
        Group("time: decode", 45, tuple(
            Item("time", "decode_attention", case, _PLAIN, 8)
            for case in sorted((c for c in decode.TIMED if not c.spans),
                               key=lambda case: case.head_dim != 128)
        )),
    ),
)  # fmt: skip
SECOND = Part(
    220,
    (
        Group("time: backward", 75, tuple(
            Item("time", "ring_attention_backward", case, seconds=15)
            for case in backward.TIMED
            if case.q_length == 10_000 and case.is_causal
        )),
        Group("profile", 35, (
            Item("profile", "ring_attention", _WHOLE[0]),
            Item("profile", "ring_attention", _WHOLE[1]),
            Item("profile", "decode_attention", decode.TIMED[1]),
            Item("profile", "ring_attention_backward", _BACKWARD[0]),
        )),
        Group("right: packed products", 20, _checks("packed_matmul", _PACKED)),
        Group("time: MLP", 80, tuple(
            Item("time", "cache_tiled_mlp", case, seconds=15)
            for case in mlp.TIMED
            if case.tokens == 64
        )),
    ),
)  # fmt: skip
PARTS = {1: FIRST, 2: SECOND}


def group_named(name: str) -> Group:
    """Return the group of a name, from any part."""
    return next(group for part in PARTS.values() for group in part.groups if group.name == name)
