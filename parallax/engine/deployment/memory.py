"""The buffers of one device, by name; a lost device refuses every read and write."""

import time
from typing import Any

import jax

Name = tuple[Any, ...]


class DeviceLost(RuntimeError):  # noqa: N818 -- what happened, not what was done wrong
    """The error for the use of a device that is lost.

    Attributes:
      number: the device's number in the deployment's list.
    """

    def __init__(self, number: int, device: Any):
        super().__init__(f"device {number} ({device}) is lost (simulated): its buffers are gone.")
        self.number = number


class DeviceMemory:
    """The buffers of one device.

    Attributes:
      number: its number in the deployment's list.
      device: a jax.Device.
      lost_at: `time.perf_counter` at its loss; None while it works.
    """

    def __init__(self, number: int, device: Any):
        self.number, self.device = number, device
        self.lost_at: float | None = None
        self._held: dict[Name, Any] = {}

    def put(self, name: Name, tree: Any) -> Any:
        """Copy arrays to this device and keep them; raise DeviceLost if it is lost."""
        self.check()
        placed = jax.device_put(tree, self.device)
        self._held[name] = placed
        return placed

    def keep(self, name: Name, tree: Any) -> None:
        """Keep arrays that were computed here; raise DeviceLost if the device is lost."""
        self.check()
        self._held[name] = tree

    def read(self, name: Name) -> Any:
        """Return what is held; raise DeviceLost, or KeyError for what was never here."""
        self.check()
        return self._held[name]

    def pop(self, name: Name) -> Any:
        """Return what is held, as `read`, and forget it: for buffers that are donated."""
        self.check()
        return self._held.pop(name)

    def free(self, name: Name) -> None:
        """Forget a name, if it is held."""
        self._held.pop(name, None)

    def __contains__(self, name: Name) -> bool:
        self.check()
        return name in self._held

    def names(self) -> tuple[Name, ...]:
        """Return the names of all that is held, in the order of arrival."""
        return tuple(self._held)

    def n_bytes(self, kind: str | None = None) -> int:
        """Return the bytes held, of one kind (the first part of a name) or in all."""
        return sum(
            x.nbytes
            for name, tree in self._held.items()
            if kind is None or name[0] == kind
            for x in jax.tree.leaves(tree)
        )

    def lose(self) -> None:
        """Simulate the loss of the device: delete every buffer, and refuse reads and writes.

        Raises:
          ValueError: the device is lost already.
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
        """Make the device work again, empty; raise ValueError if it was not lost."""
        if self.lost_at is None:
            raise ValueError(f"device {self.number} ({self.device}) is not lost.")
        self.lost_at = None

    def check(self) -> None:
        """Raise DeviceLost if the device is lost, as any use of it does."""
        if self.lost_at is not None:
            raise DeviceLost(self.number, self.device)
