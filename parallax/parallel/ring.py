"""The paths by which queries reach all keys: keys travel around rings, or are local already.

A path folds `hop(state, kv, source, last) -> (state, share)` over the devices' keys. `source` is
the index of the device that the keys are from, or OWN or Behind, known at trace time, and `last`
whether the path knows then that no hop follows. A `share` is what
a hop adds to its keys' results (their gradients; an empty tree forward); a path returns the shares
summed on the device that the keys came from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

OWN: Final = None  # the source of a device's own keys


class Behind(NamedTuple):
    """The source `places` devices before one's own, in a ring around which positions rise."""

    places: int


Hop = Callable[[Any, Any, Any, bool], tuple[Any, Any]]
Home = Callable[[Any], Any]


def _as_is(shares: Any) -> Any:
    return shares


class Path(Protocol):
    """The protocol of a path."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which the folded keys differ."""
        ...

    @property
    def size(self) -> int:
        """The number of pieces that the sequence of the keys is split into."""
        ...

    def index(self) -> Any:
        """Return the index of the piece that this device's queries are."""
        ...

    def travel(
        self, kv: Any, hop: Hop, state: Any, home: Home = _as_is, unroll: int = 1
    ) -> tuple[Any, Any]:
        """Fold `hop` over all pieces, and return the state and the shares at home.

        `home` is applied to complete shares before their last send, home. `unroll` hops make up one
        iteration of a loop: with 2, the state of a custom call alternates between two buffers
        instead of being copied once per hop.
        """
        ...


@dataclass(frozen=True)
class Around:
    """The path on which keys travel around nested rings, one per mesh axis, the first outermost.

    Attributes:
      axes: mesh axes, major first; () is a single device.

    Cost: for every place of the rings around it, a ring of n sends its keys n - 1 times and shares
      n times (not at all in a ring of one).
    """

    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        return lax.axis_size(self.axes) if self.axes else 1

    def index(self):
        return lax.axis_index(self.axes) if self.axes else 0

    def travel(self, kv, hop, state, home=_as_is, unroll=1):
        if not self.axes:
            return hop(state, kv, OWN, True)
        inner = Around(self.axes[1:])
        if lax.axis_size(self.axes[0]) == 1:
            return inner.travel(kv, hop, state, home, unroll)

        def inner_ring(state, kv, place, outer_last):
            def one(state, kv, inner_place, inner_last):
                last = outer_last and inner_last
                if place is OWN and inner_place is OWN:
                    return hop(state, kv, OWN, last)
                outer = lax.axis_index(self.axes[0]) if place is OWN else place
                within = inner.index() if inner_place is OWN else inner_place
                return hop(state, kv, outer * inner.size + within, last)

            return inner.travel(kv, one, state, unroll=unroll)

        return _around(self.axes[0], kv, inner_ring, state, home, unroll)


def _around(axis: str, kv: Any, hop: Hop, state: Any, home: Home, unroll: int) -> tuple[Any, Any]:
    """Fold over one ring. A send starts before its hop's work; the last hop sends no keys."""
    size, me = lax.axis_size(axis), lax.axis_index(axis)
    send = partial(_send, axis, [(i, (i + 1) % size) for i in range(size)])

    def one(state, shares, kv, back, *, last):
        """Run one hop; shares travel one hop behind their keys, and add up on arrival."""
        arrived = send(shares)
        state, share = hop(state, kv, (me - back) % size, last)
        return state, jax.tree.map(jnp.add, arrived, share)

    def body(carry, back):
        state, shares, kv = carry
        following = send(kv)
        return (*one(state, shares, kv, back, last=False), following), None

    received = send(kv)
    state, shares = hop(state, kv, OWN, False)
    # The next place must not start earlier, so that its keys have this whole hop, which may be an
    # inner ring, to arrive.
    state, received = lax.optimization_barrier((state, received))
    if size > 2:
        carry, backs = (state, shares, received), jnp.arange(1, size - 1, dtype=jnp.int32)
        (state, shares, received), _ = lax.scan(body, carry, backs, unroll=unroll)
    state, shares = one(state, shares, received, size - 1, last=True)
    return state, send(home(shares))


@dataclass(frozen=True)
class Neighbours:
    """The path on which keys travel only as far as a window of earlier tokens reaches.

    Attributes:
      axes: mesh axes of one flat ring, in the order of positions.
      hops: devices before its own whose keys a device sees.

    Cost: `hops` sends of keys; as many of shares, the last straight home.
    """

    axes: tuple[str, ...]
    hops: int

    @property
    def size(self) -> int:
        return lax.axis_size(self.axes)

    def index(self):
        return lax.axis_index(self.axes)

    def travel(self, kv, hop, state, home=_as_is, unroll=1):
        def send(tree, by: int):
            pairs = [(i, (i + by) % self.size) for i in range(self.size)]
            return _send(self.axes, pairs, tree)

        received, shares = kv, None
        following = send(kv, 1) if self.hops else None
        state, own = hop(state, kv, OWN, not self.hops)
        for place in range(1, self.hops + 1):
            # As in `_around`: keys have a whole hop to arrive.
            state, received = lax.optimization_barrier((state, following))
            if place < self.hops:
                following = send(received, 1)
            arrived = None if shares is None else send(shares, 1)
            state, shares = hop(state, received, Behind(place), place == self.hops)
            if arrived is not None:
                shares = jax.tree.map(jnp.add, arrived, shares)
        if self.hops:
            back = send(home(shares), -self.hops)
            own = jax.tree.map(lambda mine, theirs: mine + theirs.astype(mine.dtype), own, back)
        return state, own


def _send(axis: str | tuple[str, ...], pairs: list[tuple[int, int]], tree: Any) -> Any:
    """Send `tree` to the next device of the ring, and return the previous device's."""
    return jax.tree.map(lambda x: lax.ppermute(x, axis, pairs), tree)


@dataclass(frozen=True)
class QueryShards:
    """The path for devices with all keys and one of `size` shards of the queries: nothing travels.

    Attributes:
      axis: mesh axis of the shards; device i has shard i % size.
      size: number of shards.
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
            return hop(state, of(source), source, False)

        state, own = hop(state, of(me), OWN, False)
        state, others = lax.scan(
            body, state, jnp.arange(1, self.size, dtype=jnp.int32), unroll=unroll
        )
        back = (me - jnp.arange(self.size, dtype=jnp.int32)) % self.size

        def at_home(own, others):
            shares = jnp.take(jnp.concatenate([own[None], others]), back, axis=0)
            return jnp.moveaxis(shares, 0, 1).reshape(own.shape[0], -1, *own.shape[2:])

        return state, jax.tree.map(at_home, own, others)
