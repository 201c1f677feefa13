"""Which implementation of an operation runs: one rule for all of them."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

import jax

from parallax.kernels import validation
from parallax.kernels.interpreting import interpreter
from parallax.kernels.validation import Kind

_ENABLED: ContextVar[tuple[str, ...]] = ContextVar("enabled", default=())
_REFUSALS: ContextVar[set[str] | None] = ContextVar("refusals", default=None)
# Our own: a GPU has to have been seen to run them right.
_TO_VALIDATE = ("mosaic",)
_WARNED: set[str] = set()


class UnvalidatedKernelWarning(UserWarning):
    """A program asks for a kernel that no GPU of its kind was seen to run right."""


def choose(
    operation: str,
    implementation: str | None,
    reasons: Mapping[str, str | None],
    *,
    kind: Kind | None = None,
    kernel: str | None = None,
) -> str:
    """The implementation to run.

    Args:
      operation: name, for the message.
      implementation: the one asked for. None takes the best that can of those that are enabled
        here; else the fastest that the record validates; else "xla".
      reasons: for each implementation, the best first, why it cannot do this, in a few words that
        follow "cannot do this: "; None if it can.
      kind: what the record is asked for; None: the record says nothing of this.
      kernel: the operation in the record that does the work, where it is another.

    Raises:
      NotImplementedError: the one asked for cannot, or does not exist; it names one that can.

    Warns:
      UnvalidatedKernelWarning: once per operation, where the choice is a kernel that the record
        does not validate for this program's GPU, unless it is interpreted.
    """
    able = [name for name, reason in reasons.items() if reason is None]
    recorded_as = kernel or operation
    if implementation is None:
        for name, reason in reasons.items():
            if reason is not None and name in enabled():
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
    """Of those that can: validated and nowhere slower than XLA; "xla" if there is none."""
    shares = {"xla": 1.0}
    for name in able:
        if kind is not None and validation.is_recorded(operation):
            gpu = device_kind()
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
    """Records, for `refusals`, that an enabled implementation cannot do this."""
    found = _REFUSALS.get()
    if found is not None:
        found.add(f"{operation}: {implementation} cannot do this: {reason}")


def enabled() -> tuple[str, ...]:
    """The opt-in implementations, which None takes wherever they can, validated or not."""
    return _ENABLED.get()


@contextlib.contextmanager
def enabling(*implementations: str) -> Iterator[None]:
    """Inside, None takes these wherever they can, validated or not.

    It holds for what is traced inside; what the same `jax.jit` traced before stays as it is.
    """
    token = _ENABLED.set(implementations)
    try:
        yield
    finally:
        _ENABLED.reset(token)


@contextlib.contextmanager
def refusals() -> Iterator[set[str]]:
    """Collects where, in what is traced inside, an enabled implementation cannot do something."""
    found: set[str] = set()
    token = _REFUSALS.set(found)
    try:
        yield found
    finally:
        _REFUSALS.reset(token)


def is_hopper(device_kind: str) -> bool:
    """Whether a GPU that JAX calls so is one that our kernels are for."""
    return any(name in device_kind for name in ("H100", "H200", "H800", "H20"))


def device_kind() -> str:
    """What JAX calls the device of the program being traced: of the mesh in context, or else its
    default one.
    """
    described = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if described is None else described.device_kind


def not_hopper() -> str | None:
    """Why the program being traced cannot run kernels for Hopper, in a few words; None if it can.

    Interpreted, it can.
    """
    if interpreter() is not None or is_hopper(device_kind()):
        return None
    return f"it is for Hopper GPUs (H100, H200), and the program is for {device_kind()!r}"
