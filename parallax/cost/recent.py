"""A model of the L2 cache."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from parallax.hlo.execution_trace import Kernel


@dataclass
class Recent:
    """A model of the L2 cache: it holds the arrays written or read last, up to its size.

    An array that does not fit passes through and evicts all others.
    """

    capacity: float
    held: dict[str, float] = field(default_factory=dict)
    used: float = 0.0

    def take(self, arrays: Iterable[tuple[str, str, float]], before: "Recent") -> None:
        """Take over another cache's arrays, given as (name here, name there, bytes).

        What it holds besides takes room here under names that nothing reads.
        """
        here: dict[str, list[tuple[str, float]]] = {}
        for name, there, size in arrays:
            here.setdefault(there, []).append((name, size))
        for there, size in before.held.items():
            left = size
            for name, part in here.get(there, ()):
                self.held[name] = min(part, left)
                left -= self.held[name]
            self.held[f" {there}"] = left
        self.used = before.used

    def hits(self, kernel: Kernel) -> float:
        """Return the bytes that a launch reads from the cache, and record the launch in it."""
        hit = 0.0
        for name, size in kernel.reads:
            hit += min(size, self.held.get(name, 0.0))
            self.touch(name, size)
        self.touch(kernel.name, kernel.written_bytes)
        return hit

    def touch(self, name: str, size: float) -> None:
        """Record that an array was written or read."""
        before = self.held.pop(name, 0.0)
        self.used -= before
        size = max(size, before)
        if size > self.capacity:
            self.held.clear()
            self.used = 0.0
            return
        self.held[name] = size
        self.used += size
        while self.used > self.capacity:
            self.used -= self.held.pop(next(iter(self.held)))
