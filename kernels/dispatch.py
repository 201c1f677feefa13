"""The one rule that decides which implementation of an operation runs."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar

import jax

from parallax.kernels import validation
from parallax.kernels.interpreting import interpreter, setting
from parallax.kernels.validation import Kind

_ENABLED: ContextVar[tuple[str, ...]] = ContextVar("enabled", default=())
_REFUSALS: ContextVar[set[str]] = ContextVar("refusals")
# Kernels of this repository: a record must show that a GPU ran them right.
_TO_VALIDATE = ("mosaic",)
_WARNED: set[str] = set()


class UnvalidatedKernelWarning(UserWarning):
    """The warning that a program uses a kernel that no record shows right on its kind of GPU."""


def choose(
    operation: str,
    implementation: str | None,
    reasons: Mapping[str, str | None],
    *,
    kind: Kind | None = None,
    kernel: str | None = None,
) -> str:
    """Choose the implementation of an operation to run.

    Args:
      operation: name, for error messages.
      implementation: the requested one. None takes the best enabled implementation that supports
        this call; else the fastest that the record validates; else "xla".
      reasons: for each implementation, best first, why it does not support this call, in a few
        words that follow "cannot do this: "; None if it does.
      kind: the key to look up in the record; None where the record does not cover this call.
      kernel: the name under which the record lists the kernel, if not `operation`.

    Raises:
      NotImplementedError: the requested one does not support this call, or does not exist; the
        message names one that does.

    Warns:
      UnvalidatedKernelWarning: once per operation, if the choice is a kernel that the record does
        not validate for this program's GPU, unless it is interpreted.
    """
    able = [name for name, reason in reasons.items() if reason is None]
    recorded_as = kernel or operation
    if implementation is None:
        for name, reason in reasons.items():
            if reason is not None:
                record_refusal(operation, name, reason)
        chosen = next((name for name in able if name in enabled()), None)
        if chosen is None:
            return _fastest_validated(recorded_as, able, kind)
    elif implementation in able:
        chosen = implementation
    else:
        if implementation in reasons:
            problem = f"cannot do this: {reasons[implementation]}"
        else:
            problem = f"does not exist here: there are {', '.join(map(repr, reasons))}"
        raise NotImplementedError(
            f"{operation}: implementation={implementation!r} {problem}. "
            f"Use implementation={able[-1]!r}, or None, which takes the best that is validated."
        )
    _warn_unless_validated(recorded_as, chosen, kind)
    return chosen


def _fastest_validated(operation: str, able: Sequence[str], kind: Kind | None) -> str:
    """Return the fastest validated implementation that is nowhere slower than XLA, else "xla"."""
    shares = {"xla": 1.0}
    if kind is not None and validation.is_recorded(operation):
        gpu = device_kind()
        for name in able:
            share = validation.share_of_xla(operation, name, kind, gpu)
            if share is not None and validation.is_validated(operation, name, kind, gpu):
                shares[name] = share
    return min(shares, key=lambda name: shares[name])


def _warn_unless_validated(operation: str, implementation: str, kind: Kind | None) -> None:
    if implementation not in _TO_VALIDATE or interpreter() is not None or operation in _WARNED:
        return
    gpu = device_kind()
    if kind is not None and validation.is_validated(operation, implementation, kind, gpu):
        return
    _WARNED.add(operation)
    what = "" if kind is None else f" ({kind.describe()})"
    warnings.warn(
        f"{operation}: the kernel {implementation!r}{what} is not validated: no record shows that "
        f"{gpu!r} ran it right with jax {jax.__version__}. Check its results against "
        "implementation='xla'; docs/generated/kernels.md lists what is validated.",
        UnvalidatedKernelWarning,
        stacklevel=2,
    )


def record_refusal(operation: str, implementation: str, reason: str) -> None:
    """Record for `refusals` that an implementation does not support a call, if it is enabled."""
    if implementation in enabled():
        _REFUSALS.get(set()).add(f"{operation}: {implementation} cannot do this: {reason}")


def enabled() -> tuple[str, ...]:
    """Return the opt-in implementations, which None prefers even if they are not validated."""
    return _ENABLED.get()


def enabling(*implementations: str) -> AbstractContextManager:
    """Enable implementations: inside, None prefers them even if they are not validated.

    This affects what is traced inside; what the same `jax.jit` traced before does not change.
    """
    return setting(_ENABLED, implementations)


def refusals() -> AbstractContextManager[set[str]]:
    """Collect the calls traced inside that an enabled implementation does not support."""
    return setting(_REFUSALS, set())


def is_hopper(device_kind: str) -> bool:
    """Return whether a device kind, as JAX names it, is a Hopper GPU, which the kernels need."""
    return any(name in device_kind for name in ("H100", "H200", "H800", "H20"))


def device_kind() -> str:
    """Return the device kind of the program being traced.

    It is that of the mesh in context, or else of JAX's default device.
    """
    described = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if described is None else described.device_kind


def not_hopper() -> str | None:
    """Return why the program being traced cannot run Hopper kernels; None if it can.

    An interpreted program can.
    """
    if interpreter() is not None or is_hopper(device_kind()):
        return None
    return f"it is for Hopper GPUs (H100, H200), and the program is for {device_kind()!r}"
