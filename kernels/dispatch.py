"""Which implementation of an operation runs: one rule for all of them."""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import jax

from parallax.kernels.interpreting import interpreter

# What a GPU has been seen to run right, beside XLA, by operation. Add ("mosaic",) to those of which
# `pytest -m gpu` has passed on a Hopper GPU: None then takes it wherever it can.
PROVEN: dict[str, tuple[str, ...]] = {
    "attention_step": (),
    "attention_step_backward": (),
    "decode_attention": (),
    "cache_tiled_mlp": (),
}
_ASKED: ContextVar[tuple[str, ...]] = ContextVar("asked", default=())
_REFUSALS: ContextVar[set[str] | None] = ContextVar("refusals", default=None)


def choose(
    operation: str,
    implementation: str | None,
    reasons: Mapping[str, str | None],
    *,
    kernel: str | None = None,
) -> str:
    """The implementation to run.

    Args:
      operation: name, for the message.
      implementation: the one asked for; None takes the best that can and is proven (or trusted).
      reasons: for each implementation, the best first, why it cannot do this, in a few words that
        follow "cannot do this: "; None if it can.
      kernel: the operation of PROVEN that does the work, where it is another.

    Raises:
      NotImplementedError: the one asked for cannot, or does not exist; it names one that can.
    """
    able = [name for name, reason in reasons.items() if reason is None]
    if implementation is None:
        allowed = trusted(kernel or operation)
        for name, reason in reasons.items():
            if reason is not None and name in allowed:
                tell(operation, name, reason)
        return next(name for name in able if name in allowed)
    if implementation in able:
        return implementation
    if implementation in reasons:
        problem = f"cannot do this: {reasons[implementation]}"
    else:
        problem = f"does not exist here: there are {', '.join(map(repr, reasons))}"
    raise NotImplementedError(
        f"{operation}: implementation={implementation!r} {problem}. "
        f"Use implementation={able[-1]!r}, or None, which takes the best that can and is proven."
    )


def tell(operation: str, implementation: str, reason: str) -> None:
    """Tells `refusals` that one that None would have taken cannot do this."""
    told = _REFUSALS.get()
    if told is not None:
        told.add(f"{operation}: {implementation} cannot do this: {reason}")


def asked() -> tuple[str, ...]:
    """What None may take here beside the proven ones."""
    return _ASKED.get()


def trusted(operation: str) -> tuple[str, ...]:
    """What None may take of an operation here."""
    return ("xla", *PROVEN.get(operation, ()), *_ASKED.get())


@contextlib.contextmanager
def trusting(*implementations: str) -> Iterator[None]:
    """Inside, None takes these too, beside the proven ones.

    It holds for what is traced inside; what the same `jax.jit` traced before stays as it is.
    """
    token = _ASKED.set(implementations)
    try:
        yield
    finally:
        _ASKED.reset(token)


@contextlib.contextmanager
def refusals() -> Iterator[set[str]]:
    """Collects, of what is traced inside, where None would have taken a trusted one that cannot."""
    found: set[str] = set()
    token = _REFUSALS.set(found)
    try:
        yield found
    finally:
        _REFUSALS.reset(token)


def is_hopper(device_kind: str) -> bool:
    """Whether a GPU that JAX calls so is one that our kernels are for."""
    return any(name in device_kind for name in ("H100", "H200", "H800", "H20"))


def not_hopper() -> str | None:
    """Why the program being traced cannot run kernels for Hopper, in a few words; None if it can.

    Its device is that of the mesh in context, or else JAX's default one. Interpreted, it can.
    """
    if interpreter() is not None:
        return None
    described = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.devices()[0].device_kind if described is None else described.device_kind
    if is_hopper(kind):
        return None
    return f"it is for Hopper GPUs (H100, H200), and the program is for {kind!r}"
