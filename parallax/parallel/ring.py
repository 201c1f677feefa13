"""Who holds which keys, and how they reach the queries: by travelling, or by being cut out.

A path folds `hop(state, kv, source) -> (state, share)` over all devices' keys. `source` is the
index of the device whose keys these are, or OWN, known when the program is made. A `share` is what
a hop adds to its keys (their gradients; an empty tree forward); a path returns the shares summed
where the keys came from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import jax
import jax.numpy as jnp
from jax import lax

OWN: Final = None  # the source of a device's own keys
Hop = Callable[[Any, Any, Any], tuple[Any, Any]]
Home = Callable[[Any], Any]


def _as_is(shares: Any) -> Any:
    return shares


class Path(Protocol):
    """What attention needs of either path."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Mesh axes over which what it folds differs."""
        ...

    @property
    def size(self) -> int:
        """Into how many pieces the sequence of the keys is split."""
        ...

    def index(self) -> Any:
        """Which piece this device's queries are."""
        ...

    def travel(
        self, kv: Any, hop: Hop, state: Any, home: Home = _as_is, unroll: int = 1
    ) -> tuple[Any, Any]:
        """Folds `hop` over all pieces. Returns the state, and the shares at home.

        `home` is applied to complete shares before they are sent home for the last time. `unroll`
        hops are written out in one iteration of a loop: with 2, the state of a custom call goes to
        and fro between two buffers, where it would be copied once a hop.
        """
        ...


@dataclass(frozen=True)
class Around:
    """Keys travel around rings: one for each mesh axis, each inside the one before it.

    Attributes:
      axes: mesh axes, major first; () is a device alone.

    Cost: for sizes n1, n2, ... a ring sends its keys (its own n - 1) times for every place of the
      rings around it, and shares n times (not at all in a ring of one).
    """

    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        return lax.axis_size(self.axes) if self.axes else 1

    def index(self):
        return lax.axis_index(self.axes) if self.axes else 0

    def travel(self, kv, hop, state, home=_as_is, unroll=1):
        if not self.axes:
            return hop(state, kv, OWN)
        inner = Around(self.axes[1:])
        if lax.axis_size(self.axes[0]) == 1:
            return inner.travel(kv, hop, state, home, unroll)

        def inner_ring(state, kv, place):
            def one(state, kv, inner_place):
                if place is OWN and inner_place is OWN:
                    return hop(state, kv, OWN)
                outer = lax.axis_index(self.axes[0]) if place is OWN else place
                within = inner.index() if inner_place is OWN else inner_place
                return hop(state, kv, outer * inner.size + within)

            return inner.travel(kv, one, state, unroll=unroll)

        return _around(self.axes[0], kv, inner_ring, state, home, unroll)


def _around(axis: str, kv: Any, hop: Hop, state: Any, home: Home, unroll: int) -> tuple[Any, Any]:
    """One ring. Every send starts before the work of its hop; the last hop sends no keys."""
    size, me = lax.axis_size(axis), lax.axis_index(axis)
    send = partial(_send, axis, [(i, (i + 1) % size) for i in range(size)])

    def one(state, shares, kv, back):
        """Shares travel one hop behind their keys; a device's own joins on arrival."""
        arrived = send(shares)
        state, share = hop(state, kv, (me - back) % size)
        return state, jax.tree.map(jnp.add, arrived, share)

    def body(carry, back):
        state, shares, kv = carry
        following = send(kv)
        return (*one(state, shares, kv, back), following), None

    received = send(kv)
    state, shares = hop(state, kv, OWN)
    # Nothing of the next place may start earlier: its keys have this whole hop, which may be a ring
    # of its own, to arrive.
    state, received = lax.optimization_barrier((state, received))
    if size > 2:
        carry, backs = (state, shares, received), jnp.arange(1, size - 1, dtype=jnp.int32)
        (state, shares, received), _ = lax.scan(body, carry, backs, unroll=unroll)
    state, shares = one(state, shares, received, size - 1)
    return state, send(home(shares))


def _send(axis: str, pairs: list[tuple[int, int]], tree: Any) -> Any:
    """`tree` as the previous device of the ring had it."""
    return jax.tree.map(lambda x: lax.ppermute(x, axis, pairs), tree)


@dataclass(frozen=True)
class QueryShards:
    """Every device has all keys, its queries are one of `size` shards: nothing travels.

    Attributes:
      axis: mesh axis of the shards; device i has shard i % size.
      size: how many.
    """

    axis: str
    size: int

    @property
    def axes(self) -> tuple[str, ...]:
        return (self.axis,)

    def index(self):
        return lax.axis_index(self.axis) % self.size

    def travel(self, kv, hop, state, home=_as_is, unroll=1):
        me = self.index()

        def of(source):
            def cut(x):
                length = x.shape[1] // self.size
                return lax.dynamic_slice_in_dim(x, source * length, length, axis=1)

            return jax.tree.map(cut, kv)

        def body(state, back):
            source = (me - back) % self.size
            return hop(state, of(source), source)

        state, own = hop(state, of(me), OWN)
        state, others = lax.scan(
            body, state, jnp.arange(1, self.size, dtype=jnp.int32), unroll=unroll
        )
        back = (me - jnp.arange(self.size, dtype=jnp.int32)) % self.size

        def at_home(own, others):
            shares = jnp.take(jnp.concatenate([own[None], others]), back, axis=0)
            return jnp.moveaxis(shares, 0, 1).reshape(own.shape[0], -1, *own.shape[2:])

        return state, jax.tree.map(at_home, own, others)
