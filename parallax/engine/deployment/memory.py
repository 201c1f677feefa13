"""What one device holds, by name; a lost device refuses every read and every write."""

import time
from typing import Any

import jax

Name = tuple[Any, ...]


class DeviceLost(RuntimeError):  # noqa: N818 -- what happened, not what was done wrong
    """A buffer was asked of a device that is gone.

    Attributes:
      number: of the device in the deployment's list.
    """

    def __init__(self, number: int, device: Any):
        super().__init__(f"device {number} ({device}) is lost (simulated): its buffers are gone.")
        self.number = number


class DeviceMemory:
    """Buffers of one device.

    Attributes:
      number: in the deployment's list.
      device: a jax.Device.
      lost_at: `time.perf_counter` when it was lost; None while it works.
    """

    def __init__(self, number: int, device: Any):
        self.number, self.device = number, device
        self.lost_at: float | None = None
        self._held: dict[Name, Any] = {}

    def put(self, name: Name, tree: Any) -> Any:
        """Copies arrays here, wherever they are, and keeps them. Raises DeviceLost."""
        self.check()
        placed = jax.device_put(tree, self.device)
        self._held[name] = placed
        return placed

    def keep(self, name: Name, tree: Any) -> None:
        """Keeps arrays that were computed here. Raises DeviceLost."""
        self.check()
        self._held[name] = tree

    def read(self, name: Name) -> Any:
        """Raises DeviceLost; KeyError for what was never here."""
        self.check()
        return self._held[name]

    def pop(self, name: Name) -> Any:
        """As `read`, and forgets it: for buffers that are donated."""
        self.check()
        return self._held.pop(name)

    def free(self, name: Name) -> None:
        """Forgets it, if it is there."""
        self._held.pop(name, None)

    def __contains__(self, name: Name) -> bool:
        self.check()
        return name in self._held

    def names(self) -> tuple[Name, ...]:
        """Of all that is held, in the order it came."""
        return tuple(self._held)

    def n_bytes(self, kind: str | None = None) -> int:
        """Bytes held; of one kind, the first part of a name, or of all."""
        return sum(
            x.nbytes
            for name, tree in self._held.items()
            if kind is None or name[0] == kind
            for x in jax.tree.leaves(tree)
        )

    def lose(self) -> None:
        """Simulated: deletes every buffer, and refuses reads and writes from now on.

        Raises:
          ValueError: lost already.
        """
        if self.lost_at is not None:
            raise ValueError(
                f"device {self.number} ({self.device}) is lost already. Lose another, or repair it."
            )
        for tree in self._held.values():
            for x in jax.tree.leaves(tree):
                x.delete()
        self._held.clear()
        self.lost_at = time.perf_counter()

    def repair(self) -> None:
        """Empty and working again. ValueError if it was not lost."""
        if self.lost_at is None:
            raise ValueError(f"device {self.number} ({self.device}) is not lost.")
        self.lost_at = None

    def check(self) -> None:
        """Raises DeviceLost where it is lost: what a first use would find."""
        if self.lost_at is not None:
            raise DeviceLost(self.number, self.device)
